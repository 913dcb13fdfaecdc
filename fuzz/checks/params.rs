//! Parameters survive their canonical form, and building from them never panics.

use ws_cluster::types::Limits;
use ws_cluster::wire::connect::parse_connect;
use ws_cluster::wire::params::Params;
use ws_cluster::wire::push::Push;
use ws_cluster::wire::request::Credentials;

pub fn run(text: &[u8]) {
    let Ok(params) = Params::parse(text) else { return };
    let mut canonical = Vec::new();
    params.canonical("", &mut canonical);
    let again = Params::parse(canonical.strip_prefix(b"\n").unwrap_or(&canonical));
    let again = again.expect("the canonical form is a form");
    let mut twice = Vec::new();
    again.canonical("", &mut twice);
    assert_eq!(canonical, twice);

    let limits = Limits { tags: 4, selector_ids: 4, ..Limits::default() };
    let _ = Credentials::from_params(&params, &limits);
    if let Ok(connect) = parse_connect(&params, &limits) {
        assert!(connect.tags.len() <= 4);
    }
    if let Ok(push) = Push::from_params(&params, &limits) {
        assert!(ws_cluster::wire::json::validate(&push.data).is_ok());
    }
}
