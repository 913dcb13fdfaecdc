//! The HTTP server of the ops ports: access control, and the choice of the site that answers.

use super::access::{self, Access};
use super::names::{self, Names};
use super::node_view::NodeView;
use super::pprof::{self, Profiler};
use super::reload::{self, Reload};
use super::reply::Reply;
use super::site::Site;
use super::{metrics, pages};
use crate::io::accept_errors::AcceptErrors;
use crate::io::clock;
use crate::io::date::http_date;
use crate::io::http::{self, Answer, Connections, Request, Service};
use crate::io::pulse;
use crate::io::routes;
use crate::io::shared::Shared;
use crate::state::counters::Refusal;
use crate::state::settings::{Settings, Times};
use crate::types::Limits;
use crate::wire::http::{Head, HttpError};
use crate::wire::response::{write_refusal, write_response};
use monoio::net::{TcpListener, TcpStream};
use prometheus_client::registry::Registry;
use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Interval at which deadlines are checked.
const TICK_MS: u64 = 100;
/// Maximum number of connections per port, if the open-files limit leaves room for them.
const MAX_CONNECTIONS: usize = 256;
/// Descriptors of this thread that are not for connections: its own, and those of a profile, which
/// needs one per thread.
const RESERVED_FILES: usize = 192;
/// How long a connection may wait before a request on it was allowed.
const UNKNOWN_MS: u64 = 3_000;
/// Request bodies are ignored.
const MAX_BODY_BYTES: usize = 1_024;

/// Memory for the requests of one port, beyond 4 KiB each.
const MAX_REQUEST_BYTES: usize = 4 << 20;

/// What the sites share.
pub struct Ops {
    node: NodeView,
    registry: Registry,
    /// The address that the ports are bound to.
    bound: IpAddr,
    reload: Arc<dyn Reload>,
    profiler: Profiler,
}

impl Ops {
    /// `bound`: the address of the ops ports.
    pub fn new(
        shared: Arc<Shared>,
        [ws, http]: [SocketAddr; 2],
        bound: IpAddr,
        reload: Arc<dyn Reload>,
    ) -> Self {
        let (registry, profiler) = (metrics::registry(&shared), Profiler::default());
        Self { node: NodeView { shared, ws, http }, registry, bound, reload, profiler }
    }
}

/// Serves the ops ports until the process ends. Call it on a separate thread.
pub async fn serve(
    ops: Ops,
    listeners: impl IntoIterator<Item = (Site, std::net::TcpListener)>,
) -> io::Result<()> {
    let ops = Rc::new(ops);
    let mut ports = Vec::new();
    let listeners: Vec<_> = listeners.into_iter().collect();
    let at = |(site, listener): &(Site, std::net::TcpListener)| {
        Ok((*site, listener.local_addr()?.port()))
    };
    let sites: Rc<[(Site, u16)]> = listeners.iter().map(at).collect::<io::Result<_>>()?;
    for (site, listener) in listeners {
        listener.set_nonblocking(false)?;
        let listener = TcpListener::from_std(listener)?;
        let shared = &ops.node.shared;
        let left = shared.open_files.saturating_sub(RESERVED_FILES) / 4;
        let port = Rc::new(Port {
            ops: Rc::clone(&ops),
            site,
            sites: Rc::clone(&sites),
            max_connections: left.clamp(8, MAX_CONNECTIONS),
            connections: RefCell::new(Connections::new(MAX_REQUEST_BYTES)),
        });
        ports.push(Rc::clone(&port));
        monoio::spawn(accept(port, listener));
    }
    let mut last_tick = clock::monotonic();
    loop {
        monoio::time::sleep(Duration::from_millis(TICK_MS)).await;
        pulse::beat();
        let now = clock::monotonic();
        // A peer is not late if this thread did not run.
        let stall_ms = now.since(last_tick).saturating_sub(2 * TICK_MS);
        last_tick = now;
        for port in &ports {
            let mut connections = port.connections.borrow_mut();
            connections.handle_stall(stall_ms);
            connections.handle_tick(now);
        }
    }
}

async fn accept(port: Rc<Port>, listener: TcpListener) {
    let errors = AcceptErrors::new(port.site.flag());
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => serve_one(&port, stream, peer.ip()).await,
            Err(error) => {
                port.ops.node.shared.ops_accept_errors.add(1);
                monoio::time::sleep(errors.handle(&error)).await;
            }
        }
    }
}

async fn serve_one(port: &Rc<Port>, stream: TcpStream, peer: IpAddr) {
    if !http::make_room(&port.connections, port.max_connections).await {
        port.count_refusal(Refusal::HttpConnections);
        return http::refuse_connection(stream);
    }
    let admitted = http::admit(&port.connections, stream, peer);
    let port = Rc::clone(port);
    monoio::spawn(async move { http::serve(admitted, &*port).await });
}

struct Port {
    ops: Rc<Ops>,
    site: Site,
    /// The ports of all sites.
    sites: Rc<[(Site, u16)]>,
    max_connections: usize,
    connections: RefCell<Connections>,
}

impl Port {
    async fn reply(&self, head: &Head<'_>, connection: BorrowedFd<'_>) -> Reply {
        let settings = self.settings();
        let names = Names { bound: self.ops.bound, more: &settings.ops_hosts };
        let named = names.check(head.host);
        if let Err(refusal) = named.and_then(|()| names::check_site(self.site, head)) {
            return refusal;
        }
        if let Some(elsewhere) = self.of_the_api(head.path) {
            return elsewhere;
        }
        let is_reload = self.site == Site::Pages && head.path == reload::PATH;
        if is_reload && head.method != "POST" {
            return reload::wrong_method();
        }
        if !is_reload && !matches!(head.method, "GET" | "HEAD") {
            return Reply::text(405, "use GET\n").with("Allow", "GET, HEAD");
        }
        if let Some(file) = access::file(head) {
            return file;
        }
        let is_page = self.site == Site::Pages && pages::is_page(head.path);
        match self.access(head) {
            // A page asks for the token itself, and is sent complete: the browser has none of it.
            Access::Denied if is_page && access::is_browser(head) => {
                let head = Head { if_none_match: None, ..*head };
                access::unauthorized(pages::answer(&self.ops.node, &head).await)
            }
            Access::Denied => access::refusal(head),
            Access::InAddress if !is_page && access::is_browser(head) => access::gate(),
            Access::InAddress | Access::Granted => self.answer_granted(head, connection).await,
        }
    }

    async fn answer_granted(&self, head: &Head<'_>, connection: BorrowedFd<'_>) -> Reply {
        if let Some(other) = Site::of(head.path).filter(|other| *other != self.site)
            && let Some((_, port)) = self.sites.iter().find(|(site, _)| *site == other)
        {
            return not_here(head.path, other.flag(), *port);
        }
        match self.site {
            Site::Metrics => metrics::answer(&self.ops.registry, head),
            Site::Pprof => {
                let Ops { node, profiler, .. } = &*self.ops;
                pprof::answer(&node.shared, profiler, head, connection).await
            }
            Site::Pages if head.path == reload::PATH => {
                reload::answer(&self.ops.reload, connection).await
            }
            Site::Pages => pages::answer(&self.ops.node, head).await,
        }
    }

    /// Returns the answer to a path that the WebSocket port or the HTTP port serves.
    fn of_the_api(&self, path: &str) -> Option<Reply> {
        let NodeView { ws, http, .. } = &self.ops.node;
        match path {
            "/ws/connect" => Some(not_here(path, "--ws_port", ws.port())),
            _ if routes::methods_of(path).is_some() => {
                Some(not_here(path, "--http_port", http.port()))
            }
            _ => None,
        }
    }

    /// Returns whether the request comes from somebody who has full access.
    fn is_known(&self, head: &Head<'_>, status: u16) -> bool {
        // Public files prove nothing.
        let settings = self.settings();
        names::reason_of(status).is_none()
            && Access::of(settings.ops_token.as_ref(), head) != Access::Denied
    }

    fn access(&self, head: &Head<'_>) -> Access {
        if self.site == Site::Pages && pages::is_public(head.path) {
            return Access::Granted;
        }
        Access::of(self.settings().ops_token.as_ref(), head)
    }

    /// Returns the settings in force.
    fn settings(&self) -> Arc<Settings> {
        self.ops.node.shared.active().settings
    }
}

fn not_here(path: &str, flag: &str, port: u16) -> Reply {
    Reply::text(404, format!("not found: {path} is on the port of {flag}, {port}\n"))
}

impl Service for Port {
    type Pending<'a> = Infallible;

    fn limits(&self) -> Limits {
        Limits { body_bytes: MAX_BODY_BYTES, ..self.settings().limits.clone() }
    }

    fn times(&self) -> Times {
        self.settings().times
    }

    fn unknown_ms(&self) -> u64 {
        UNKNOWN_MS
    }

    fn connections(&self) -> &RefCell<Connections> {
        &self.connections
    }

    fn count_refusal(&self, why: Refusal) {
        self.ops.node.shared.ops_refusals.count(why);
    }

    fn handle_answered(&self) {}

    fn refuse(
        &self,
        _origin: Option<&str>,
        _ip: Option<IpAddr>,
        error: &HttpError,
        out: &mut Vec<u8>,
    ) {
        write_refusal(out, error.status, false, http_date(clock::wall()), &[], error.msg);
    }

    async fn answer(
        &self,
        request: Request<'_>,
        keep_alive: bool,
        out: &mut Vec<u8>,
    ) -> Answer<Infallible> {
        let Reply { status, content_type, fields, body } =
            self.reply(request.head, request.connection).await;
        let is_known = self.is_known(request.head, status);
        let refused = names::reason_of(status);
        // A client without access gets no keep-alive.
        let keep_alive = keep_alive && refused.is_none();
        if let Some(why) = refused {
            self.count_refusal(why);
        }
        let fields: Vec<(&str, &str)> =
            fields.iter().map(|(name, value)| (*name, &**value)).collect();
        let date = http_date(clock::wall());
        write_response(out, status, keep_alive, date, &fields, &content_type, &body);
        if request.head.method == "HEAD" {
            // Content-Length stays that of a GET (RFC 9110, section 8.6).
            out.truncate(out.len() - body.len());
        }
        Answer { keep_alive, is_known, pending: None }
    }

    fn poll_finish(
        &self,
        pending: &mut Infallible,
        _out: &mut Vec<u8>,
        _context: &mut Context<'_>,
    ) -> Poll<()> {
        match *pending {}
    }
}
