//! Floor 4: a node's birth, life and end.

use crate::config::Config;
use crate::io::core::Core;
use crate::io::drive;
use crate::io::engine::Engine;
use crate::io::listener::{listen, reserve};
use crate::io::mailbox::Mailbox;
use crate::io::ring::Ring;
use crate::io::shared::{Settings, Shared};
use crate::io::sys;
use crate::ops::metrics;
use crate::state::{Worker, WorkerConfig};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Barrier, OnceLock};
use std::thread;

/// Entries of the executor's own ring: accepts, HTTP reads and writes, eventfds, timers.
const EXECUTOR_ENTRIES: u32 = 1024;

/// Why a node could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("{flag} {address} cannot be listened on ({error}): {fix}")]
    Port { flag: &'static str, address: SocketAddr, error: io::Error, fix: &'static str },
    #[error(
        "io_uring is not available ({0}): ws-cluster needs Linux 6.1 or later with io_uring allowed"
    )]
    Ring(io::Error),
    #[error("{what} failed: {error}")]
    System { what: &'static str, error: io::Error },
    #[error("a worker ended early: {0}")]
    Worker(String),
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> NodeError {
    move |error| NodeError::System { what, error }
}

/// Where a node listens, known once it does.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    pub ws: SocketAddr,
    pub http: SocketAddr,
    pub metrics: SocketAddr,
}

/// What a thread tells main.
enum News {
    Listening,
    Ended(Result<(), NodeError>),
}

/// Runs a node until it is told to end by SIGTERM or SIGINT and has drained; a second signal ends
/// the process at once, with code 143. Calls `started` when every port is open.
///
/// The order of birth: main makes the eventfds; every worker takes its own file-descriptor table;
/// all meet at a barrier; only then is anything opened that must not have copies in other tables.
pub fn run(config: Config, started: impl FnOnce(&Addresses)) -> Result<(), NodeError> {
    sys::block_termination_signals().map_err(system("blocking signals"))?;
    sys::raise_open_files().map_err(system("raising the limit of open files"))?;
    let (bind, ws_port, http_port) = (config.bind, config.ws_port, config.http_port);
    let metrics_address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), config.prometheus_port);
    let shared = Arc::new(shared_of(config));
    let workers = shared.settings.workers;
    let mailboxes = Mailbox::all(workers).map_err(system("making eventfds"))?;
    let (news_sender, news) = mpsc::channel();
    let birth = Arc::new(Birth { barrier: Barrier::new(workers + 2), addresses: OnceLock::new() });
    for mailbox in mailboxes.into_iter().enumerate() {
        spawn_worker(mailbox, &shared, &birth, &news_sender)?;
    }
    spawn_ops(&shared, &birth, &news_sender)?;
    // Every thread has its own table now; what main holds from here on is in no other.
    birth.barrier.wait();
    let reserved = reserve_all(bind, ws_port, http_port, metrics_address);
    let addresses = match &reserved {
        Ok((addresses, _)) => Some(*addresses),
        Err(_) => None,
    };
    // Without addresses the threads end at once.
    let _ = birth.addresses.set(addresses);
    birth.barrier.wait();
    let (addresses, held) = reserved?;
    for _ in 0..=workers {
        match news.recv() {
            Ok(News::Listening) => {}
            Ok(News::Ended(result)) => return result,
            Err(_) => return Err(NodeError::Worker("no thread is left".into())),
        }
    }
    drop(held);
    started(&addresses);
    live(&shared, &news, workers)
}

/// Waits for the end: a signal, then the workers' drain.
fn live(shared: &Arc<Shared>, news: &Receiver<News>, workers: usize) -> Result<(), NodeError> {
    watch_signals(shared)?;
    let mut ended = 0;
    while ended < workers {
        match news.recv() {
            Ok(News::Listening) => {}
            Ok(News::Ended(Ok(()))) => ended += 1,
            Ok(News::Ended(Err(error))) => return Err(error),
            Err(_) => return Err(NodeError::Worker("its thread is gone".into())),
        }
    }
    Ok(())
}

/// The first signal begins the drain, the second ends the process.
fn watch_signals(shared: &Arc<Shared>) -> Result<(), NodeError> {
    let shared = Arc::clone(shared);
    let watch = move || {
        if sys::wait_for_signal().is_ok() {
            tracing::info!(
                drain_ms = shared.settings.drain_ms,
                "draining: a second signal ends at once"
            );
            shared.drain();
            if sys::wait_for_signal().is_ok() {
                std::process::exit(143);
            }
        }
    };
    spawn("signals", watch)
}

/// What the threads wait for before they open anything.
struct Birth {
    barrier: Barrier,
    /// `None`: the ports cannot be had.
    addresses: OnceLock<Option<Addresses>>,
}

impl Birth {
    /// To be called in the thread that is born: gives it its own table, and waits until main has
    /// the ports.
    fn take_table(&self) -> Result<Option<Addresses>, NodeError> {
        let unshared = sys::unshare_files();
        self.barrier.wait();
        self.barrier.wait();
        unshared.map_err(system("unshare(CLONE_FILES)"))?;
        Ok(self.addresses.get().copied().flatten())
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), NodeError> {
    let builder = thread::Builder::new().name(name.into());
    builder.spawn(body).map(drop).map_err(system("starting a thread"))
}

fn spawn_worker(
    (index, mailbox): (usize, Mailbox),
    shared: &Arc<Shared>,
    birth: &Arc<Birth>,
    news: &Sender<News>,
) -> Result<(), NodeError> {
    let (shared, birth, news) = (Arc::clone(shared), Arc::clone(birth), news.clone());
    spawn(&format!("worker-{index}"), move || {
        let result = birth.take_table().and_then(|addresses| match addresses {
            Some(addresses) => work(index, mailbox, &shared, addresses, &news),
            None => Ok(()),
        });
        // Main is gone only when the process ends.
        let _ = news.send(News::Ended(result));
    })
}

/// A worker's life.
fn work(
    index: usize,
    mailbox: Mailbox,
    shared: &Arc<Shared>,
    addresses: Addresses,
    news: &Sender<News>,
) -> Result<(), NodeError> {
    if shared.settings.pin {
        sys::pin_to_core(index).map_err(system("pinning a worker to its core"))?;
    }
    let ws = listen(addresses.ws).map_err(system("listening on the WebSocket port"))?;
    let http = listen(addresses.http).map_err(system("listening on the HTTP port"))?;
    let mut runtime = executor()?;
    let ring = Ring::new().map_err(NodeError::Ring)?;
    let worker = Worker::new(worker_config(index, shared), sys::now_ms());
    let http_counters = Arc::clone(&shared.http_counters[index]);
    let engine = Engine::new(worker, Arc::clone(shared), http_counters, ring, ws);
    let core = Core::new(Arc::clone(shared), index, engine, mailbox);
    let _ = news.send(News::Listening);
    runtime.block_on(drive::run(core, http)).map_err(system("serving"))
}

type Executor = monoio::Runtime<monoio::time::TimeDriver<monoio::IoUringDriver>>;

fn executor() -> Result<Executor, NodeError> {
    let mut ring = monoio_ring::IoUring::builder();
    ring.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag();
    monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .with_entries(EXECUTOR_ENTRIES)
        .uring_builder(ring)
        .enable_timer()
        .build()
        .map_err(NodeError::Ring)
}

fn spawn_ops(
    shared: &Arc<Shared>,
    birth: &Arc<Birth>,
    news: &Sender<News>,
) -> Result<(), NodeError> {
    let (shared, birth, news) = (Arc::clone(shared), Arc::clone(birth), news.clone());
    spawn("ops", move || {
        let result = birth.take_table().and_then(|addresses| {
            let Some(addresses) = addresses else { return Ok(()) };
            let listener = listen(addresses.metrics).map_err(system("listening for metrics"))?;
            let mut runtime = executor()?;
            let _ = news.send(News::Listening);
            runtime
                .block_on(metrics::serve_port(shared, listener))
                .map_err(system("serving metrics"))
        });
        if result.is_err() {
            let _ = news.send(News::Ended(result));
        }
    })
}

/// The ports, held until every worker listens on them.
fn reserve_all(
    bind: IpAddr,
    ws_port: u16,
    http_port: u16,
    metrics: SocketAddr,
) -> Result<(Addresses, [TcpListener; 3]), NodeError> {
    let take = |flag, address| {
        let fix = "stop what listens there, or choose another port";
        reserve(address).map_err(|error| NodeError::Port { flag, address, error, fix })
    };
    let (ws_held, ws) = take("--ws_port", SocketAddr::new(bind, ws_port))?;
    let (http_held, http) = take("--http_port", SocketAddr::new(bind, http_port))?;
    let (metrics_held, metrics) = take("--prometheus_port", metrics)?;
    Ok((Addresses { ws, http, metrics }, [ws_held, http_held, metrics_held]))
}

fn shared_of(config: Config) -> Shared {
    let settings = Settings {
        node: config.node,
        workers: config.workers,
        max_connections: config.max_connections,
        max_http_connections: config.max_http_connections,
        demand_exp: config.demand_exp,
        idle_timeout_ms: config.idle_timeout_ms,
        request_timeout_ms: config.request_timeout_ms,
        keep_alive_ms: config.keep_alive_ms,
        linger_ms: config.linger_ms,
        drain_ms: config.drain_ms,
        limits: config.limits,
        outbox_bytes: config.outbox_bytes,
        worker_outbox_bytes: config.worker_outbox_bytes,
        echo: config.echo,
        pin: config.pin,
    };
    Shared::new(settings, config.projects, sys::now_ms())
}

fn worker_config(index: usize, shared: &Shared) -> WorkerConfig {
    let settings = &shared.settings;
    WorkerConfig {
        node: settings.node,
        worker: index,
        workers: settings.workers,
        projects: Arc::clone(&shared.projects),
        limits: settings.limits.clone(),
        max_connections: settings.max_connections,
        idle_timeout_ms: settings.idle_timeout_ms,
        outbox_bytes: settings.outbox_bytes,
        worker_outbox_bytes: settings.worker_outbox_bytes,
        echo: settings.echo,
        hash_keys: (sys::random_u64(), sys::random_u64()),
        counters: Arc::clone(&shared.counters[index]),
    }
}
