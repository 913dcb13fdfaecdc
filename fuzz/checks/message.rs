//! Whatever a client sends is a message, or is answered with JSON.

use ws_cluster::types::Limits;
use ws_cluster::wire::json;
use ws_cluster::wire::message::{self, ClientMessage};

pub fn run(text: &[u8]) {
    let limits = Limits { tags: 5, tag_bytes: 9, ..Limits::default() };
    match message::parse(text, &limits) {
        Ok(ClientMessage::Subscribe { tags, .. } | ClientMessage::Unsubscribe { tags, .. }) => {
            assert!((1..=limits.tags).contains(&tags.len()));
            assert!(tags.iter().all(|tag| ws_cluster::types::is_name(tag, limits.tag_bytes)));
        }
        Ok(ClientMessage::Request { data, .. }) => assert!(json::validate(data).is_ok()),
        Ok(_) => {}
        Err(error) => {
            let mut answer = Vec::new();
            error.write(&mut answer);
            assert!(json::validate(&answer).is_ok());
        }
    }
}
