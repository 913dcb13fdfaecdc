//! A push in JSON, alone and in a batch: refused, or within every limit.

use ws_cluster::types::Limits;
use ws_cluster::wire::json;
use ws_cluster::wire::push::{Batch, Push};
use ws_cluster::wire::request::Credentials;

/// Every member of a push, from any source.
const MEMBERS: [&str; 14] = [
    "uids",
    "cids",
    "tags",
    "devices",
    "except_cids",
    "data",
    "ttl_ms",
    "idempotency_key",
    "transient",
    "pid",
    "exp",
    "sign",
    "type",
    "id",
];

fn check(push: &Push<'_>, limits: &Limits) {
    assert!(json::validate(&push.data).is_ok());
    let targets = &push.targets;
    for list in [&targets.uids, &targets.tags, &targets.devices].into_iter().flatten() {
        assert!(list.len() <= limits.selector_ids);
        assert_eq!(list.as_names().iter().count(), list.len());
    }
    for list in [&targets.cids, &targets.except_cids].into_iter().flatten() {
        assert!(list.len() <= limits.selector_ids);
        assert_eq!(list.as_cids().iter().count(), list.len());
    }
}

pub fn run(text: &[u8]) {
    let limits = Limits { selector_ids: 4, batch_messages: 4, ..Limits::default() };
    let Ok(members) = json::members(text) else { return };
    let _ = Credentials::from_json(&members, Some("ab"), &limits);
    let (request, server) =
        (Push::from_json(&members, &limits), Push::from_server(&members, &limits));
    let server = server.map(|(push, _)| push);
    for push in [request, server] {
        match push {
            Ok(push) => {
                check(&push, &limits);
                assert!(members.iter().all(|member| MEMBERS.contains(&&*member.name)));
            }
            Err(error) => {
                assert!(error.msg.len() < 1_000 && !error.msg.contains(char::is_control));
            }
        }
    }
    if let Ok(batch) = Batch::from_json(&members, &limits) {
        let pushes: Vec<_> = batch.pushes(&limits).collect();
        assert_eq!(pushes.len(), batch.len());
        pushes.iter().flatten().for_each(|push| check(push, &limits));
    }
}
