//! Other settings and projects while connections are open.

use super::*;
use crate::state::active_config::ActiveConfig;
use crate::state::counters::CLOSE_CAUSES;
use crate::state::worker::reload::SERVERS_AFTER_MS;

fn project(pid: &str, secret: &[u8]) -> Project {
    Project {
        pid: pid.into(),
        secrets: vec![Secret::new(secret)],
        allowed_origins: None,
        subscribe: SubscribePolicy::Signed,
    }
}

/// Returns what a reload of these projects puts in force.
fn reloaded(rig: &Rig, list: Vec<Project>) -> ActiveConfig {
    let WorkerConfig { settings, projects, .. } = &rig.worker.config;
    let (projects, _) = Projects::new(list).unwrap().succeed(projects).unwrap();
    let (settings, projects) = (Arc::clone(settings), Arc::new(projects));
    ActiveConfig { generation: 2, settings, projects }
}

fn removals(rig: &Rig) -> u64 {
    let cause = CLOSE_CAUSES.iter().position(|cause| *cause == "project_removed").unwrap();
    rig.worker.counters().closes(cause)
}

/// A rig with projects `1` and `2`, and a client of each number of them.
fn rig(of_first: usize, of_second: usize) -> Rig {
    let mut rig = Rig::with(1 << 20, 1 << 30, |config| {
        config.projects =
            Arc::new(Projects::new(vec![project("1", b"s"), project("2", b"s")]).unwrap());
    });
    for index in 0..of_first + of_second {
        let project = ProjectId(u32::from(index >= of_first));
        rig.worker.handle_connect(Identity { project, ..client("u", 0) }, b"", NOW);
        if index % 64 == 0 {
            rig.flush();
        }
    }
    rig.flush();
    rig
}

#[test]
fn a_removed_projects_clients_are_closed_in_slices_and_others_stay() {
    let mut rig = rig(150, 20);
    let active = reloaded(&rig, vec![project("2", b"s")]);
    rig.worker.reload(&active, NOW);
    assert!(rig.worker.is_overdue() && !rig.worker.is_calm());
    for expected in [64, 128, 150] {
        rig.worker.handle_tick(NOW);
        rig.flush();
        assert_eq!(removals(&rig), expected);
    }
    assert!(rig.closed.iter().all(|(_, code)| *code == Some(close::POLICY)));
    rig.worker.handle_tick(NOW);
    rig.worker.handle_tick(NOW);
    assert!(!rig.worker.is_overdue() && rig.worker.is_calm());
    assert_eq!((rig.worker.connections(), removals(&rig)), (20, 150));
}

#[test]
fn a_project_that_comes_back_keeps_the_connections_that_are_still_open() {
    let mut rig = rig(100, 0);
    let active = reloaded(&rig, vec![project("2", b"s")]);
    rig.worker.reload(&active, NOW);
    rig.worker.handle_tick(NOW);
    let active = reloaded(&rig, vec![project("1", b"s")]);
    rig.worker.reload(&active, NOW);
    for _ in 0..4 {
        rig.worker.handle_tick(NOW);
        rig.flush();
    }
    assert_eq!((rig.worker.connections(), removals(&rig)), (36, 64));
    rig.push("u", 10, 0);
    assert_eq!(rig.flush().len(), 36, "it has its old id");
}

#[test]
fn business_servers_of_a_removed_project_are_told_of_its_clients_and_go_last() {
    let mut rig = rig(3, 0);
    let server = rig.serve();
    let active = reloaded(&rig, vec![project("2", b"s")]);
    rig.worker.reload(&active, NOW);
    // What was accepted before still reaches them.
    rig.push("u", 10, 0);
    assert_eq!(rig.flush().len(), 3);
    rig.worker.handle_tick(NOW);
    assert_eq!(rig.text_to(server).matches(r#""reason":"project_removed""#).count(), 3);
    rig.worker.handle_tick(NOW);
    assert!(rig.worker.is_open(server) && !rig.worker.is_overdue());
    let mut later = NOW;
    later += SERVERS_AFTER_MS;
    rig.worker.handle_tick(later);
    rig.flush();
    assert!(rig.worker.removal.is_none());
    assert_eq!(rig.closed.last(), Some(&(server, Some(close::POLICY))));
    assert_eq!(rig.worker.connections(), 0);
}

#[test]
fn settings_and_secrets_take_effect_for_open_connections() {
    let mut rig = rig(1, 0);
    let slot = 0;
    let subscribe = |rig: &mut Rig, secret: &[u8]| {
        let cid = rig.worker.cid(slot).unwrap();
        let sign =
            sign::sign_hex(&Secret::new(secret), &[format!("subscribe\n{cid}\na").as_bytes()]);
        let text = format!(r#"{{"type":"subscribe","tags":["a"],"sign":"{sign}"}}"#);
        rig.worker.handle_frame(slot, Message::Text(text.as_bytes()), NOW);
        rig.text_to(slot).contains(r#""code":1"#)
    };
    assert!(subscribe(&mut rig, b"s") && !subscribe(&mut rig, b"t"));
    let mut both = project("1", b"t");
    both.secrets.push(Secret::new(b"s"));
    let mut active = reloaded(&rig, vec![both]);
    let settings = Arc::make_mut(&mut active.settings);
    settings.limits.message_bytes = 5_000;
    settings.memory.outbox_bytes = 7_000;
    rig.worker.reload(&active, NOW);
    assert!(subscribe(&mut rig, b"s") && subscribe(&mut rig, b"t"));
    assert_eq!(rig.worker.message_limit(slot), 5_000);
    assert_eq!(rig.worker.outbox_limit, 10_000, "at least two messages");
    let active = reloaded(&rig, vec![project("1", b"t")]);
    rig.worker.reload(&active, NOW);
    assert!(!subscribe(&mut rig, b"s") && subscribe(&mut rig, b"t"));
}

/// A connection that was quiet for a part of the old ping interval has the rest of the new one
/// left: nobody is pinged late, and not all at once.
#[test]
fn another_ping_interval_counts_from_the_part_that_has_passed() {
    for (before_ms, after_ms) in [(40_000, 10_000), (10_000, 40_000)] {
        let times = |ping_interval_ms| Times {
            ping_interval_ms,
            idle_timeout_ms: 3_600_000,
            ..Times::default()
        };
        let mut rig = Rig::with(1 << 20, 1 << 30, |config| {
            settings(config).times = times(before_ms);
        });
        rig.connect("u");
        let mut now = NOW;
        let pinged_at = |rig: &mut Rig, now: &mut Now, until_ms| loop {
            now.monotonic += 250;
            now.wall += 250;
            rig.worker.handle_tick(*now);
            let passed_ms = now.monotonic.since(NOW.monotonic);
            if !rig.flush().is_empty() || passed_ms >= until_ms {
                return passed_ms;
            }
        };
        let half_ms = before_ms / 2;
        assert_eq!(pinged_at(&mut rig, &mut now, half_ms), half_ms);
        let mut active = reloaded(&rig, vec![project("1", b"s")]);
        Arc::make_mut(&mut active.settings).times = times(after_ms);
        rig.worker.reload(&active, now);
        let after_reload_ms = pinged_at(&mut rig, &mut now, u64::MAX) - half_ms;
        let due_ms = after_ms / 2;
        assert!(
            // A unit of the frame clock is a whole number of milliseconds.
            (due_ms * 9 / 10..due_ms + 5_000).contains(&after_reload_ms),
            "{before_ms} {after_ms}: {after_reload_ms}"
        );
    }
}
