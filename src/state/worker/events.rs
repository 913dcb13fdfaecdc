//! Events of clients and nodes for business servers.

use super::Worker;
use crate::state::projects::ProjectId;
use crate::state::subscriptions::{BrokerRequest, Relay, To};
use crate::types::{EventSet, NodeId};
use crate::wire::parcel::{self, EventList, Events};
use crate::wire::server_message::{self, Client, Detail};
use std::collections::BTreeMap;

/// Size at which collected events are sent; a parcel is at most this plus one event.
const PARCEL_BYTES: usize = 64 << 10;

/// Events of this loop turn for business servers elsewhere, by project.
#[derive(Debug, Default)]
pub(super) struct PendingEvents(BTreeMap<ProjectId, Vec<u8>>);

impl PendingEvents {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Worker {
    /// Publishes an event of the client in `slot`, which is in the directory, to all business
    /// servers that want it.
    pub(super) fn report_event(&mut self, slot: u32, kind: EventSet, detail: Detail<'_, '_>) {
        if self.registry.is_empty() {
            return;
        }
        let connection = &self.connections[slot as usize];
        let project = ProjectId(connection.project);
        let is_wanted_elsewhere = self.registry.wanted_elsewhere(project).meets(kind);
        if !is_wanted_elsewhere && !self.own_servers.want(project, kind) {
            return;
        }
        let mut text = std::mem::take(&mut self.event_text);
        let device = self.directory.device(connection.group);
        let ip = connection.ip(&self.addresses);
        let client = Client { cid: connection.cid, uid: &connection.uid, device, ip };
        let name = name_of(kind);
        let (node, ts) = (self.config.settings.node, self.now.wall);
        server_message::write_event(&mut text, name, client, node, ts, detail);
        // Other workers first: one's own server may need room, which may close this very client,
        // and that would be the next event.
        if is_wanted_elsewhere {
            self.tell_others(project, kind, &text);
        }
        self.tell_own_servers(Some(project), kind, &text);
        text.clear();
        self.event_text = text;
    }

    fn tell_others(&mut self, project: ProjectId, kind: EventSet, text: &[u8]) {
        self.config.counters.events_published.add(1);
        let list = self.pending_events.0.entry(project).or_default();
        parcel::add_event(list, kind, |out| out.extend_from_slice(text));
        if list.len() >= PARCEL_BYTES {
            let list = std::mem::take(list);
            self.send_events(project, &list);
        }
    }

    /// Sends the events collected for business servers elsewhere.
    pub(super) fn send_pending_events(&mut self) {
        for (project, list) in std::mem::take(&mut self.pending_events.0) {
            if !list.is_empty() {
                self.send_events(project, &list);
            }
        }
    }

    fn send_events(&mut self, project: ProjectId, list: &[u8]) {
        let pid = self.config.projects.get(project).map_or("", |project| &project.pid);
        let mut bytes = Vec::with_capacity(list.len() + 128);
        let (sender, worker) = (self.sender(), self.config.worker as u8);
        Events { sender, worker, pid, list: EventList(list) }.encode(&mut bytes);
        self.subscriptions
            .request(BrokerRequest::Relay(Relay { to: To::Events(project), parcel: bytes }));
    }

    /// Handles events of another worker. This worker's own were already delivered here.
    pub(super) fn handle_events(&mut self, events: &Events<'_>) {
        let is_own =
            events.sender == self.sender() && usize::from(events.worker) == self.config.worker;
        let Some(project) = self.config.projects.id_of(events.pid).filter(|_| !is_own) else {
            return;
        };
        for event in events.list {
            match event {
                Ok((kind, text)) => {
                    self.tell_own_servers(Some(project), kind, text.as_bytes());
                }
                Err(_) => return self.config.counters.parcels_malformed.add(1),
            }
        }
    }

    /// Handles a node that joined, or is lost with its business servers.
    pub(super) fn handle_node(&mut self, node: NodeId, is_up: bool) {
        if !is_up {
            let removed = self.registry.remove_node(node);
            self.forget_servers(&removed);
        }
        let mut text = Vec::new();
        server_message::write_node(&mut text, node, is_up, self.now.wall);
        self.tell_own_servers(None, EventSet::NODE, &text);
    }

    /// Sends an event to the business servers here. `project`: those of this project; `None`: all.
    fn tell_own_servers(&mut self, project: Option<ProjectId>, kind: EventSet, text: &[u8]) {
        let slots = self.own_servers.slots_that_want(project, kind);
        let mut frame = None;
        // One of them may be too slow, or need the room of others: a connection closed for that is
        // reported after all have received this event.
        let is_held = std::mem::replace(&mut self.holds_closes, true);
        for slot in slots {
            let frame = *frame
                .get_or_insert_with(|| self.open.add_event(|out| out.extend_from_slice(text)));
            self.config.counters.events_delivered.add(1);
            self.owe(slot, frame);
        }
        self.holds_closes = is_held;
        self.close_shed();
    }

    /// Updates the metric of known business servers.
    pub(super) fn show_known(&self) {
        self.config.counters.servers_known.set(self.registry.len() as u64);
    }
}

fn name_of(kind: EventSet) -> &'static str {
    match kind {
        EventSet::CONNECT => "connect",
        EventSet::DISCONNECT => "disconnect",
        EventSet::SUBSCRIBE => "subscribe",
        _ => "unsubscribe",
    }
}
