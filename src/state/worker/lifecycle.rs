//! Opening and closing connections.

use super::sweep::{CLOSES_PER_SLICE, VISITS_PER_SLICE};
use super::{Identity, Role, Worker};
use crate::state::batch::CloseRequest;
use crate::state::broker::user_hash;
use crate::state::connection::{CloseCause, Connection, NONE};
use crate::state::counters::{CLOSE_CAUSES, RecentConnect};
use crate::state::projects::ProjectId;
use crate::state::subscriptions::{BrokerRequest, Listener};
use crate::types::{Cid, ConnKey, EventSet, Now, SnowflakeClock};
use crate::wire::message;
use crate::wire::server_message::Detail;
use compact_str::CompactString;

/// Progress of closing connections whose ids an earlier run may have issued.
#[derive(Debug, Clone, Copy)]
pub(super) struct UsedIds {
    used_ms: u64,
    next_slot: usize,
}

impl Worker {
    /// Adds a connection and answers its handshake: `head` (the 101 response, or nothing in the
    /// simulator), then the welcome frame. From then on pushes reach a client; a business server
    /// gets its welcome once every worker knows of it.
    pub fn handle_connect(
        &mut self,
        identity: Identity<'_>,
        head: &[u8],
        now: Now,
    ) -> (ConnKey, Cid) {
        self.now = now;
        self.generation = self.generation.wrapping_add(1);
        let cid = Cid(self.ids.next(now.wall, &self.config.incarnation));
        let heard_ms = self.heard_ms();
        let Identity { project, uid, role, .. } = identity;
        let mut connection = Connection::new(cid, self.generation, project.0, uid, heard_ms);
        connection.visit_epoch = self.visit_epoch;
        connection.last_frame = self.sweep.frame_clock();
        if role != Role::Client {
            connection.set_server();
        }
        if let Some(ip) = identity.ip {
            connection.set_ip(ip, &mut self.addresses);
        }
        let slot = self.connections.insert(connection) as u32;
        self.sweep.handle_connect(slot);
        self.subscriptions.join(project, listener(role, uid));
        self.set_session_exp(slot, identity.session_exp);
        if !head.is_empty() {
            let frame = self.open.add_raw(head);
            self.owe(slot, frame);
        }
        let counters = &self.config.counters;
        counters.connects.add(1);
        let (at, uid) = (now.wall, CompactString::new(uid));
        counters.recent.add(RecentConnect { at, cid, project, uid, ip: identity.ip });
        counters.connections.add(1);
        self.count_in_project(slot, |open| open + 1);
        match role {
            Role::Client => self.enter_client(slot, &identity),
            Role::Server(events) => self.enter_server(slot, project, events),
        }
        (ConnKey { slot, generation: self.generation }, cid)
    }

    fn enter_client(&mut self, slot: u32, identity: &Identity<'_>) {
        self.directory.insert(&mut self.connections, slot, identity.device);
        self.announce(slot, BrokerRequest::UserHere);
        for tag in identity.tags {
            self.directory.subscribe(&mut self.connections, slot, tag);
        }
        self.welcome(slot);
        let detail = match identity.tags {
            [] => Detail::None,
            tags => Detail::Tags(tags),
        };
        self.report_event(slot, EventSet::CONNECT, detail);
    }

    pub(super) fn welcome(&mut self, slot: u32) {
        if !self.config.settings.echo {
            let (cid, node) = (self.connections[slot as usize].cid, self.config.settings.node);
            let frame = self.open.add_text(|out| message::write_welcome(out, cid, node));
            self.owe(slot, frame);
        }
    }

    /// Starts closing the connections whose client ids may be those of an earlier run of this node:
    /// from now on such an id matches no connection. These clients connected before the queue could
    /// be asked which ids that run issued.
    pub(super) fn handle_used_ids(&mut self, used_ms: u64) {
        self.directory.hide_ids(used_ms);
        self.used_ids = Some(UsedIds { used_ms, next_slot: 0 });
        self.close_used_ids(CLOSES_PER_SLICE);
    }

    /// Continues closing them. The rest follows in the next tick, which is due at once.
    pub(super) fn close_used_ids(&mut self, mut closes: usize) {
        let Some(UsedIds { used_ms, next_slot }) = self.used_ids else { return };
        let slots = self.sweep.slots();
        let end = slots.min(next_slot + VISITS_PER_SLICE);
        for slot in next_slot..end {
            if closes == 0 {
                self.used_ids = Some(UsedIds { used_ms, next_slot: slot });
                self.is_overdue = true;
                return;
            }
            let connection = self.connections.get(slot);
            let is_used =
                |one: &Connection| one.is_open() && SnowflakeClock::ms_of(one.cid.0) <= used_ms;
            if connection.is_some_and(is_used) {
                closes -= 1;
                // Spreads the reconnects over a second.
                let reconnect_after_ms = slot as u32 % 1_000;
                self.close(slot as u32, CloseCause::GoingAway { reconnect_after_ms });
            }
        }
        self.used_ids = (end < slots).then_some(UsedIds { used_ms, next_slot: end });
        self.is_overdue |= self.used_ids.is_some();
        if self.used_ids.is_none() {
            self.directory.hide_ids(0);
        }
    }

    /// Removes a connection from the directory and requests its close after its queued output.
    pub(super) fn close(&mut self, slot: u32, cause: CloseCause) {
        let Some(connection) = self.connections.get_mut(slot as usize) else { return };
        if !connection.is_open() {
            return;
        }
        connection.set_closing();
        let place = connection.outbox.as_mut().and_then(|outbox| outbox.place.take());
        let session = (u64::from(connection.session_exp), slot, connection.generation);
        self.sessions.remove(&session);
        let is_server = connection.is_server();
        place.into_iter().for_each(|place| self.leave_place(place));
        // Business servers that receive the event may need room: a connection closed for that is
        // closed after this one, and finds this one gone from the directory.
        let is_held = std::mem::replace(&mut self.holds_closes, true);
        if is_server {
            self.leave_server(slot);
        } else {
            self.leave_client(slot, cause);
        }
        self.open.close(CloseRequest { slot, cause });
        let counters = &self.config.counters;
        counters.connections.set(counters.connections.value().saturating_sub(1));
        self.count_in_project(slot, |open| open.saturating_sub(1));
        counters.count_close(cause.index());
        self.holds_closes = is_held;
        self.close_shed();
    }

    fn count_in_project(&self, slot: u32, change: impl FnOnce(u64) -> u64) {
        let connection = &self.connections[slot as usize];
        let Some(project) = self.config.counters.projects.get(connection.project as usize) else {
            return;
        };
        let open = if connection.is_server() { &project.servers } else { &project.clients };
        open.set(change(open.value()));
    }

    fn leave_client(&mut self, slot: u32, cause: CloseCause) {
        let connection = &self.connections[slot as usize];
        let listener = Listener::Client { uid: &connection.uid };
        self.subscriptions.leave(ProjectId(connection.project), listener);
        self.announce(slot, BrokerRequest::UserGone);
        let reason = Detail::Reason(CLOSE_CAUSES[cause.index()]);
        self.report_event(slot, EventSet::DISCONNECT, reason);
        let generation = self.connections[slot as usize].generation;
        self.free_requests(ConnKey { slot, generation });
        self.directory.remove(&mut self.connections, slot);
    }

    /// Announces a user to the broker if the connection in `slot` is the user's only one.
    fn announce(&mut self, slot: u32, request: impl FnOnce(u64) -> BrokerRequest) {
        let connection = &self.connections[slot as usize];
        let is_only = connection.user_next == NONE && connection.user_previous == NONE;
        if let Some(queue_needs) =
            self.config.queue_needs.filter(|one| one.announces_users && is_only)
        {
            let project = ProjectId(connection.project);
            self.subscriptions.request(request(user_hash(
                queue_needs.user_keys,
                project,
                &connection.uid,
            )));
        }
    }
}

pub(super) fn listener(role: Role, uid: &str) -> Listener<'_> {
    match role {
        Role::Client => Listener::Client { uid },
        Role::Server(events) => {
            Listener::Server { hears_events: events.meets(EventSet::OF_CLIENTS) }
        }
    }
}
