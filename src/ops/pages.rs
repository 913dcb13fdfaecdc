//! The port for people: the live page, Swagger UI and the API descriptions.

mod live;
mod swagger;

use super::asset::Asset;
use super::node_view::NodeView;
use super::reply::Reply;
use crate::wire::http::Head;

/// The script that both pages sign with.
const SIGN: Asset = Asset::script("/sign.js", include_bytes!("pages/assets/sign.js"));

pub async fn answer(node: &NodeView, head: &Head<'_>) -> Reply {
    if head.path == SIGN.path {
        return SIGN.answer(head);
    }
    let reply = live::answer(node, head).or_else(|| swagger::answer(node, head));
    reply.unwrap_or_else(|| Reply::text(404, "not found\n"))
}

/// Returns whether it is a page: a browser without the token gets it with 401, and its form asks
/// for the token. The page reveals only where the node's ports are; the rest is fetched with the
/// token.
pub fn is_page(path: &str) -> bool {
    live::is_page(path) || swagger::is_page(path)
}

/// Returns whether it shows node activity, and in dev a secret: only this node's own pages may read
/// it.
pub fn shows_node(path: &str) -> bool {
    live::shows_node(path)
}

/// Returns whether it is served without the token: files of a page, which a browser fetches by
/// address alone. They are the same on every node and reveal nothing about it.
pub fn is_public(path: &str) -> bool {
    path == SIGN.path || live::is_public(path) || swagger::is_public(path)
}
