//! The port for people: the live page, Swagger UI, and the descriptions of the APIs.

mod asset;
mod json;
mod live;
mod swagger;

use super::server::{Ops, Reply};
use crate::wire::http::Head;
use asset::Asset;

/// What both pages sign with.
const SIGN: Asset = Asset::script("/sign.js", include_bytes!("pages/assets/sign.js"));

pub async fn answer(ops: &Ops, head: &Head<'_>) -> Reply {
    if head.path == SIGN.path {
        return SIGN.answer(head);
    }
    let reply = live::answer(ops, head).or_else(|| swagger::answer(ops, head));
    reply.unwrap_or_else(|| Reply::text(404, "nothing here\n"))
}

/// What is asked for without a token: files of a page, which a browser fetches with nothing but
/// their address. They are the same everywhere, and tell nothing of the node.
pub fn is_public(path: &str) -> bool {
    path == SIGN.path || live::is_public(path) || swagger::is_public(path)
}
