//! Profiles, in the shape of Go's `net/http/pprof`.

use super::server::{Ops, Reply};
use crate::wire::http::Head;

pub async fn answer(_ops: &Ops, _head: &Head<'_>) -> Reply {
    Reply::text(404, "nothing here\n")
}
