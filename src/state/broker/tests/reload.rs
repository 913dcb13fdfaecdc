//! Other projects while the links are up.

use super::*;

/// Announcements of projects that a node does not serve are not kept.
#[test]
fn a_reload_that_adds_a_project_asks_for_its_business_servers() {
    let project = |pid: &str| Project {
        pid: pid.into(),
        secrets: vec![Secret::new(b"s")],
        allowed_origins: None,
        subscribe: SubscribePolicy::Any,
    };
    let mut setting = Setting::ready(1);
    let mut list = here(&[7]);
    let (cid, events_of) = (Cid(8), EventSet::ALL);
    member::add_server(&mut list, &member::Server { cid, events: events_of, pid: "new" });
    let all = |setting: &mut Setting| {
        say(setting, 1, 2, |announcement| {
            (announcement.is_full_state, announcement.here) = (true, Servers(&list));
        });
    };
    all(&mut setting);
    assert_eq!(events(&mut setting), ["0: node 9 true", "0: 7 here"]);
    published(&mut setting, b"");
    let reload = |setting: &mut Setting, pids: &[&str]| {
        let list = pids.iter().map(|pid| project(pid)).collect();
        let projects = Projects::new(list).unwrap();
        let (projects, _) = projects.succeed(&setting.broker.config.projects).unwrap();
        setting.broker.reload(Arc::new(projects), 500, setting.now.monotonic);
        let said = published(setting, b"x:nodes");
        said.iter().any(|bytes| Member::decode(bytes).unwrap().requests_full_state)
    };
    assert!(!reload(&mut setting, &["p"]), "nothing was added");
    assert!(reload(&mut setting, &["p", "new"]));
    assert_eq!(setting.broker.config.max_envelope_bytes, 10_000, "never less than it was");
    // A heartbeat reminds of it if the answer does not come.
    setting.now.monotonic += 100;
    say(&mut setting, 1, 2, |_| {});
    assert_eq!(published(&mut setting, b"x:node:9").len(), 1);
    all(&mut setting);
    assert_eq!(events(&mut setting), ["0: 8 here"]);
    // The channels of a removed project are still left by their names.
    let before = setting.subscribed.clone();
    setting.join(0);
    setting.talk();
    assert!(setting.subscribed.len() > before.len());
    assert!(!reload(&mut setting, &["new"]));
    let interest = Interest::Project(ProjectId(0));
    let now = setting.now.monotonic;
    setting.broker.handle_request(0, &BrokerRequest::Leave(interest), now, &mut setting.recorder);
    setting.talk();
    assert_eq!(setting.subscribed, before);
}
