//! The paths of the HTTP port.

pub(super) const PUSH: &str = "/ws/push";

pub(super) const POST: &str = "POST, OPTIONS";
pub(super) const GET: &str = "GET, HEAD, OPTIONS";

/// Returns the methods of a path of the HTTP port; `None` if there is no such path.
pub fn methods_of(path: &str) -> Option<&'static str> {
    match path {
        PUSH | "/ws/push/batch" => Some(POST),
        "/healthz" | "/readyz" | "/version" => Some(GET),
        _ => None,
    }
}
