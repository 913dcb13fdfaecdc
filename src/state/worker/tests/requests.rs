//! Requests of clients that are gone, and of clients that ask too much.

use super::*;
use crate::state::counters::{Answered, LostAnswer};
use crate::state::subscriptions::{Relay, Server};
use crate::wire::parcel::{Cancel, Parcel};

const REQUEST: &[u8] = br#"{"type":"request","id":"r","data":[1]}"#;

impl Rig {
    /// A worker with two projects.
    fn of_two() -> Self {
        Self::with(1 << 30, 1 << 40, |config| {
            let project = |pid: &str| Project {
                pid: pid.into(),
                secrets: vec![Secret::new(b"s")],
                allowed_origins: None,
                subscribe: SubscribePolicy::Any,
            };
            config.projects = Arc::new(Projects::new(vec![project("1"), project("2")]).unwrap());
            config.counters = Arc::new(Counters::new(2));
            settings(config).memory.server_outbox_bytes = 1 << 30;
        })
    }

    fn connect_to(&mut self, project: u32, role: Role) -> u32 {
        let project = ProjectId(project);
        let (uid, device) = ("u", "");
        let identity = Identity { project, uid, device, tags: &[], session_exp: 0, role, ip: None };
        let slot = self.worker.handle_connect(identity, b"", NOW).0.slot;
        self.flush();
        slot
    }

    fn ask(&mut self, slot: u32) {
        self.worker.handle_frame(slot, Message::Text(REQUEST), NOW);
    }

    /// Ticks while work is overdue; returns the number of ticks.
    fn catch_up(&mut self) -> usize {
        let mut ticks = 0;
        while self.worker.is_overdue() {
            let before = self.worker.pending_requests().waiting;
            self.worker.handle_tick(NOW);
            assert!(before - self.worker.pending_requests().waiting <= 600, "one slice");
            self.flush_unchecked();
            ticks += 1;
        }
        self.worker.check();
        ticks
    }

    /// Takes the parcels for other workers and nodes.
    pub(super) fn relays(&mut self) -> Vec<Relay> {
        let requests = self.worker.take_broker_requests().into_iter();
        requests
            .filter_map(
                |ask| if let BrokerRequest::Relay(relay) = ask { Some(relay) } else { None },
            )
            .collect()
    }

    fn answered(&self, how: Answered) -> u64 {
        self.worker.counters().answered(how)
    }

    fn limited(&self, project: usize) -> (u64, u64) {
        let project = self.worker.counters().projects.get(project).unwrap();
        (project.limited_by_client.value(), project.limited_by_project.value())
    }
}

/// 66 connections of one user with 1,000 requests each filled the table of all projects.
#[test]
fn a_project_has_a_share_of_the_table_and_who_goes_takes_its_requests_along() {
    let mut rig = Rig::of_two();
    let servers = [0, 1].map(|project| rig.connect_to(project, Role::Server(EventSet::REQUEST)));
    let other = rig.connect_to(1, Role::Client);
    let crowd: Vec<u32> = (0..66).map(|_| rig.connect_to(0, Role::Client)).collect();
    for &slot in &crowd {
        (0..1_001).for_each(|_| rig.ask(slot));
    }
    assert_eq!(rig.limited(0), (65, 66_000 - 65_536 + 1));
    assert_eq!(rig.worker.pending_requests().waiting, 65_536);
    rig.flush();
    rig.ask(other);
    assert_eq!(rig.types_to(servers[1]), ["request"]);
    assert_eq!(rig.limited(1), (0, 0));
    for &slot in &crowd {
        rig.worker.handle_disconnect(slot);
    }
    rig.flush();
    // They all disconnect in one turn, and their requests are freed in slices.
    assert!(rig.worker.pending_requests().waiting > 60_000);
    rig.worker.check();
    assert!(rig.catch_up() > 100);
    let left = PendingRequests { waiting: 1, asked: 1, unwritten: 0 };
    assert_eq!(rig.worker.pending_requests(), left);
    assert_eq!(rig.worker.counters().answered(Answered::ClientGone), 65_536);
    let loads = rig.worker.config.loads.in_flight();
    assert_eq!(loads.values().sum::<u32>(), 1);
}

#[test]
fn many_timeouts_come_in_slices() {
    let mut rig = Rig::of_two();
    rig.connect_to(0, Role::Server(EventSet::REQUEST));
    let slots = [(); 2].map(|()| rig.connect_to(0, Role::Client));
    slots.into_iter().for_each(|slot| (0..1_000).for_each(|_| rig.ask(slot)));
    rig.flush();
    rig.worker.handle_tick(NOW + 10_000);
    let waiting = rig.worker.pending_requests().waiting;
    assert!((1..2_000).contains(&waiting) && rig.worker.is_overdue(), "{waiting}");
    while rig.worker.is_overdue() {
        rig.worker.handle_tick(NOW + 10_000);
        rig.flush();
    }
    assert_eq!(rig.worker.pending_requests().waiting, 0);
    assert_eq!(rig.worker.counters().answered(Answered::Timeout), 2_000);
}

/// All unanswered requests of a business server were answered in one turn when it disconnected.
#[test]
fn many_requests_of_a_server_that_ends_are_answered_in_slices() {
    let mut rig = Rig::of_two();
    let server = rig.connect_to(0, Role::Server(EventSet::REQUEST));
    let cid = rig.worker.cid(server).unwrap();
    let slots = [(); 2].map(|()| rig.connect_to(0, Role::Client));
    slots.into_iter().for_each(|slot| (0..1_000).for_each(|_| rig.ask(slot)));
    rig.flush();
    rig.worker.take_broker_requests();
    rig.worker.handle_disconnect(server);
    rig.flush();
    let waiting = rig.worker.pending_requests().waiting;
    assert!((1_400..2_000).contains(&waiting) && rig.worker.is_overdue(), "{waiting}");
    assert_eq!(rig.worker.take_broker_requests(), [], "other workers hear of the answers first");
    // No new request is sent to it, and a client that disconnects meanwhile takes its requests
    // along.
    rig.ask(slots[0]);
    assert_eq!(rig.answered(Answered::NoServer), 1);
    rig.worker.handle_disconnect(slots[1]);
    rig.flush();
    assert!(rig.catch_up() > 0);
    assert_eq!(rig.worker.take_broker_requests(), [BrokerRequest::ServerGone(cid)]);
    assert_eq!(rig.worker.pending_requests(), PendingRequests::default());
    assert_eq!(
        (rig.answered(Answered::ServerGone), rig.answered(Answered::ClientGone)),
        (1_000, 1_000)
    );
    assert_eq!(rig.worker.counters().lost_answers(LostAnswer::Late), 0);
}

#[test]
fn many_requests_that_were_not_written_are_asked_of_another_server_in_slices() {
    let mut rig = Rig::of_two();
    let server = rig.connect_to(0, Role::Server(EventSet::REQUEST));
    let client = rig.connect_to(0, Role::Client);
    rig.room = 0;
    rig.ask(client);
    rig.flush();
    (0..999).for_each(|_| rig.ask(client));
    assert_eq!(rig.worker.pending_requests().unwritten, 999);
    rig.room = usize::MAX;
    let other = rig.connect_to(0, Role::Server(EventSet::REQUEST));
    rig.worker.handle_disconnect(server);
    let retried = rig.worker.counters().requests_retried.value();
    assert!((1..600).contains(&retried) && rig.worker.is_overdue(), "{retried}");
    rig.worker.check();
    assert!(rig.catch_up() > 0);
    let left = PendingRequests { waiting: 999, asked: 999, unwritten: 0 };
    assert_eq!(rig.worker.pending_requests(), left);
    assert_eq!(rig.worker.counters().requests_retried.value(), 999);
    assert_eq!(rig.answered(Answered::ServerGone), 1);
    rig.worker.handle_disconnect(other);
    rig.flush();
    rig.catch_up();
    assert_eq!(rig.answered(Answered::ServerGone), 1_000);
}

#[test]
fn a_shutdown_lets_who_asked_wait_for_the_answers() {
    let mut rig = Rig::of_two();
    let server = rig.connect_to(0, Role::Server(EventSet::REQUEST));
    let slots = [(); 3].map(|()| rig.connect_to(0, Role::Client));
    slots[..2].iter().for_each(|&slot| (0..1_000).for_each(|_| rig.ask(slot)));
    rig.flush();
    for _ in 0..3 {
        assert!(!rig.worker.close_clients(0, true, || 1), "nothing is to be done at once");
        rig.flush();
        assert_eq!((rig.closed.len(), rig.worker.clients()), (1, 2));
    }
    rig.worker.handle_disconnect(server);
    rig.flush();
    rig.catch_up();
    assert_eq!(rig.answered(Answered::ServerGone), 2_000);
    assert!(!rig.worker.close_clients(0, true, || 1));
    rig.flush();
    assert_eq!(rig.closed.len(), 4);
}

#[test]
fn a_shutdown_closes_who_waits_when_the_time_is_over() {
    let mut rig = Rig::of_two();
    let server = rig.connect_to(0, Role::Server(EventSet::REQUEST));
    let slots = [(); 2].map(|()| rig.connect_to(0, Role::Client));
    slots.into_iter().for_each(|slot| (0..1_000).for_each(|_| rig.ask(slot)));
    rig.flush();
    assert!(!rig.worker.close_clients(0, false, || 1));
    rig.flush();
    assert_eq!((rig.closed.len(), rig.worker.clients()), (2, 0));
    while rig.worker.close_servers(|| 1) {
        rig.flush();
    }
    rig.flush();
    assert!(!rig.worker.is_open(server));
    rig.catch_up();
    assert_eq!(rig.worker.pending_requests(), PendingRequests::default());
}

/// All requests unanswered by the business servers of a node were refused in the turn in which the
/// node was lost.
#[test]
fn many_requests_to_a_node_that_is_lost_are_refused_in_slices() {
    let mut rig = Rig::of_two();
    let node = NodeId::new(2).unwrap();
    let incarnation = Incarnation::new(WallMs::new(1));
    let cid = Cid(SnowflakeClock::new(node, 0, 1).next(NOW.wall, &incarnation));
    let here = Server { cid, project: ProjectId(0), events: EventSet::REQUEST };
    rig.worker.handle_worker_event(WorkerEvent::ServerHere(here), NOW);
    let slots = [(); 3].map(|()| rig.connect_to(0, Role::Client));
    slots[..2].iter().for_each(|&slot| (0..1_000).for_each(|_| rig.ask(slot)));
    rig.worker.handle_worker_event(WorkerEvent::Node { node, is_up: false }, NOW);
    rig.flush();
    let waiting = rig.worker.pending_requests().waiting;
    assert!((1_400..2_000).contains(&waiting) && rig.worker.is_overdue(), "{waiting}");
    // It is back before all are refused: new requests to it wait for their responses.
    rig.worker.handle_worker_event(WorkerEvent::ServerHere(here), NOW);
    rig.ask(slots[2]);
    assert!(rig.catch_up() > 0);
    assert_eq!(rig.worker.pending_requests().waiting, 1);
    assert_eq!(rig.answered(Answered::ServerGone), 2_000);
}

/// A request to a business server of another node stayed in that worker's table until it timed out
/// there: clients that repeatedly asked and left filled it, and others were refused.
#[test]
fn a_server_elsewhere_forgets_what_a_client_asked_that_is_gone() {
    let mut near = Rig::of_two();
    let mut far = Rig::with(1 << 30, 1 << 40, |config| {
        settings(config).node = NodeId::new(2).unwrap();
        settings(config).memory.server_outbox_bytes = 1 << 30;
    });
    let server = far.connect_to(0, Role::Server(EventSet::REQUEST));
    let (cid, events) = (far.worker.cid(server).unwrap(), EventSet::REQUEST);
    let here = Server { cid, project: ProjectId(0), events };
    near.worker.handle_worker_event(WorkerEvent::ServerHere(here), NOW);
    let slots = [(); 2].map(|()| near.connect_to(0, Role::Client));
    slots.into_iter().for_each(|slot| (0..1_000).for_each(|_| near.ask(slot)));
    near.relays().iter().for_each(|relay| far.worker.handle_parcel(&relay.parcel, NOW));
    far.flush();
    assert_eq!(far.worker.pending_requests().asked, 2_000);

    near.worker.handle_disconnect(slots[0]);
    near.catch_up();
    let relays = near.relays();
    assert!(relays.len() < 10, "one parcel for all of a slice");
    let Ok(Parcel::Cancel(cancel)) = Parcel::decode(&relays[0].parcel) else { panic!() };
    // The same in the name of another client changes nothing.
    let (mut forged, client) = (Vec::new(), near.worker.cid(slots[1]).unwrap());
    Cancel { client, ..cancel }.encode(near.worker.sender(), &mut forged);
    far.worker.handle_parcel(&forged, NOW);
    assert_eq!(far.worker.pending_requests().asked, 2_000);
    relays.iter().for_each(|relay| far.worker.handle_parcel(&relay.parcel, NOW));
    far.worker.check();
    assert_eq!(far.worker.pending_requests().asked, 1_000);
    far.worker.handle_disconnect(server);
    far.flush();
    far.catch_up();
    assert_eq!(far.relays().len(), 1_000, "answers for the client that is still there");
}
