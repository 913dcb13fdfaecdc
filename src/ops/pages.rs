//! The port for people: the live page, Swagger UI, and the descriptions of the APIs.

mod json;
mod live;
mod swagger;

use super::asset::Asset;
use super::node_view::NodeView;
use super::reply::Reply;
use crate::wire::http::Head;

/// What both pages sign with.
const SIGN: Asset = Asset::script("/sign.js", include_bytes!("pages/assets/sign.js"));

pub async fn answer(node: &NodeView, head: &Head<'_>) -> Reply {
    if head.path == SIGN.path {
        return SIGN.answer(head);
    }
    let reply = live::answer(node, head).or_else(|| swagger::answer(node, head));
    reply.unwrap_or_else(|| Reply::text(404, "nothing here\n"))
}

/// A page: a browser that opens it without the token gets it with 401, and its form asks for the
/// token. Of the node it tells where its ports are and nothing else; the rest is fetched with the
/// token.
pub fn is_page(path: &str) -> bool {
    live::is_page(path) || swagger::is_page(path)
}

/// Whether it shows what the node does, and in dev a secret: to this node's own pages alone.
pub fn shows_node(path: &str) -> bool {
    live::shows_node(path)
}

/// What is served without the token: files of a page, which a browser fetches with nothing but
/// their address. They are the same everywhere, and tell nothing of the node.
pub fn is_public(path: &str) -> bool {
    path == SIGN.path || live::is_public(path) || swagger::is_public(path)
}
