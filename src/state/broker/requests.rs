//! Requests of the workers: channels to subscribe to, parcels to relay, business servers to
//! announce.

use super::{Broker, Joined, LinksState, Sink};
use crate::state::projects::ProjectId;
use crate::state::subscriptions::{BrokerRequest, Interest, Relay, To};
use crate::types::{MonotonicMs, SnowflakeClock};

impl Broker {
    /// Handles a worker's request to subscribe, unsubscribe, relay or announce.
    pub fn handle_request(
        &mut self,
        worker: usize,
        request: &BrokerRequest,
        now: MonotonicMs,
        sink: &mut dyn Sink,
    ) {
        match request {
            BrokerRequest::Join(interest) => self.join(worker, interest, now, sink),
            BrokerRequest::Leave(interest) => self.leave(worker, interest),
            BrokerRequest::UserHere(user) => self.presence.insert(*user, worker),
            BrokerRequest::UserGone(user) => self.presence.remove(*user, worker),
            BrokerRequest::ServerHere(server) => {
                self.handle_server_here(worker, *server, now, sink)
            }
            BrokerRequest::ServerGone(cid) => self.handle_server_gone(worker, *cid, now, sink),
            // No worker waits for it: the broker itself sent the event.
            BrokerRequest::ServerSeen(_) => {}
            BrokerRequest::Relay(relay) => self.relay(worker, relay, now, sink),
        }
    }

    /// Relays a worker's parcel to other workers, on this node or elsewhere. Business servers on
    /// this node get events at once, before requests from the clients they concern.
    fn relay(&mut self, worker: usize, relay: &Relay, now: MonotonicMs, sink: &mut dyn Sink) {
        let Relay { to, parcel } = relay;
        let (To::Holder { project, .. } | To::Events(project)) = to;
        let config = &self.config;
        if let To::Holder { cid, .. } = to
            && SnowflakeClock::node_of(cid.0) == config.node
        {
            // Through Redis it would arrive after the event that its business server is gone.
            let worker = SnowflakeClock::worker_of(cid.0, config.workers);
            return if worker < config.workers {
                sink.relay(1 << worker, *project, parcel)
            };
        }
        let pid = config.projects.get(*project).map_or("", |project| &*project.pid);
        let mut name = Vec::new();
        match to {
            To::Holder { cid, .. } => {
                config.names.node_of_project(&mut name, pid, SnowflakeClock::node_of(cid.0));
            }
            To::Events(_) => config.names.events(&mut name, pid),
        }
        let is_events = matches!(to, To::Events(_));
        if is_events
            && let Some(channel) = self.interests.find(&name)
            && channel.workers & !(1 << worker) != 0
        {
            sink.relay(channel.workers & !(1 << worker), *project, parcel);
        }
        self.handle_parcel(&name, parcel, is_events, now);
    }

    fn join(&mut self, worker: usize, interest: &Interest, now: MonotonicMs, sink: &mut dyn Sink) {
        let is_up = self.has_subscribed();
        let names = self.channel_names(interest);
        if self.is_first_attempt && !is_up {
            // A subscription requested before it is known which client ids were issued waits until
            // then: either everything is subscribed to at that point or the attempt fails.
            for name in &names {
                self.interests.join(name, worker, Some(interest));
            }
            return;
        }
        let (mut must_wait, mut is_refused) = (false, false);
        let mut new: Vec<&[u8]> = Vec::new();
        for name in &names {
            let joined = self.interests.join(name, worker, Some(interest).filter(|_| is_up));
            must_wait |= joined != Joined::InForce;
            is_refused |= joined == Joined::Refused;
            if joined == Joined::New && is_up {
                new.push(name);
            }
        }
        if !new.is_empty() {
            self.subscribe_log.subscribe(&mut self.subscribing, &new, false);
            self.subscribing.handle_asked(self.listening.at(now));
        }
        if !is_up || !must_wait {
            sink.ready(worker, interest);
        } else if is_refused {
            sink.refuse(worker, interest);
        }
    }

    /// Whether every channel wanted when the links came up has been requested.
    fn has_subscribed(&self) -> bool {
        matches!(self.state, LinksState::Proving | LinksState::Ready)
            || self.subscribe_log.is_waiting()
    }

    fn leave(&mut self, worker: usize, interest: &Interest) {
        let is_up = self.has_subscribed();
        let names = self.channel_names(interest);
        let mut left: Vec<&[u8]> = Vec::new();
        for name in &names {
            if self.interests.leave(name, worker) && is_up {
                left.push(name);
            }
        }
        if !left.is_empty() {
            self.subscribe_log.unsubscribe(&mut self.subscribing, &left);
        }
    }

    /// Notes that a worker has handled a canary.
    pub fn handle_canary_seen(&mut self, worker: usize) {
        self.canary.owed_since[worker] = None;
    }

    pub(super) fn channel_names(&self, interest: &Interest) -> Vec<Vec<u8>> {
        let names = &self.config.names;
        let pid = |project: ProjectId| {
            self.config.projects.get(project).map_or("", |project| &*project.pid)
        };
        let mut channels = vec![Vec::new()];
        match interest {
            Interest::Project(project) => {
                names.project(&mut channels[0], pid(*project));
                channels.push(Vec::new());
                names.node_of_project(&mut channels[1], pid(*project), self.config.node);
            }
            Interest::User(project, uid) => {
                names.user(&mut channels[0], pid(*project), uid.as_bytes())
            }
            Interest::Inbox(project) => {
                names.node_of_project(&mut channels[0], pid(*project), self.config.node);
            }
            Interest::Events(project) => names.events(&mut channels[0], pid(*project)),
        }
        channels
    }
}
