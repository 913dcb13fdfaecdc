//! The port for people: the live page, Swagger UI, and the descriptions of the APIs.

mod swagger;

use super::server::{Ops, Reply};
use crate::wire::http::Head;

pub async fn answer(ops: &Ops, head: &Head<'_>) -> Reply {
    let reply = swagger::answer(ops, head);
    reply.unwrap_or_else(|| Reply::text(404, "nothing here\n"))
}
