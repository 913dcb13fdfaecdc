//! The port for people: the live page, Swagger UI, and the descriptions of the APIs.

use super::server::{Ops, Reply};
use crate::wire::http::Head;

pub async fn answer(_ops: &Ops, _head: &Head<'_>) -> Reply {
    Reply::text(404, "nothing here\n")
}
