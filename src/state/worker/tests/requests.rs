//! Requests of clients that are gone, and of those that ask too much.

use super::*;
use crate::state::counters::Answered;

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
            config.server_outbox_bytes = 1 << 30;
        })
    }

    fn connect_to(&mut self, project: u32, role: Role) -> u32 {
        let project = ProjectId(project);
        let identity = Identity { project, uid: "u", device: "", tags: &[], session_exp: 0, role };
        let slot = self.worker.handle_connect(identity, b"", NOW_MS).0.slot;
        self.flush();
        slot
    }

    fn ask(&mut self, slot: u32) {
        self.worker.handle_frame(slot, Message::Text(REQUEST), NOW_MS);
    }

    fn limited(&self, project: usize) -> (u64, u64) {
        let project = &self.worker.counters().projects[project];
        (project.limited_by_client.value(), project.limited_by_project.value())
    }
}

/// 66 connections of one user with 1,000 requests each took the table of all projects.
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
    rig.worker.handle_tick(NOW_MS + 10_000);
    let waiting = rig.worker.pending_requests().waiting;
    assert!((1..2_000).contains(&waiting) && rig.worker.is_overdue(), "{waiting}");
    while rig.worker.is_overdue() {
        rig.worker.handle_tick(NOW_MS + 10_000);
        rig.flush();
    }
    assert_eq!(rig.worker.pending_requests().waiting, 0);
    assert_eq!(rig.worker.counters().answered(Answered::Timeout), 2_000);
}
