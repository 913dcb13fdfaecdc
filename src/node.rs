//! Floor 5: how a node starts, runs and ends.

mod error;
mod first_push;
mod lifecycle;
mod machine;
mod memory_watch;
mod ports;
pub mod preflight;
mod reload;
mod supervisor;

pub use error::{Needs, NodeError};
pub use first_push::first_push;
pub use machine::Machine;
pub use ports::{Addresses, PortState};

use crate::config::{Config, Reloader};
use crate::io::broker::driver::{Driver, Host};
use crate::io::broker::inline::InlineHost;
use crate::io::broker::threaded::{self, BrokerEnd};
use crate::io::descriptors::Descriptors;
use crate::io::http_port::HttpPort;
use crate::io::inherited::Inherited;
use crate::io::listener::Listener;
use crate::io::mailbox::Mailbox;
use crate::io::pauses;
use crate::io::pulse::{self, Pulse};
use crate::io::ring::{Ring, RingError};
use crate::io::shared::{Ports, Shared, Start};
use crate::io::spans::{self, Recorder};
use crate::io::tasks;
use crate::io::transport::Carrier;
use crate::io::worker_context::WorkerContext;
use crate::io::ws_server::WsServer;
use crate::io::{clock, sys, threads};
use crate::ops::otel::Exporter;
use crate::ops::reload::Reload;
use crate::ops::server::{self, Ops};
use crate::ops::site::Site;
use crate::state::active_config::ActiveConfig;
use crate::state::broker::{Broker, BrokerConfig, Credentials, MAX_OUTGOING_CHANNELS};
use crate::state::settings::RedisSettings;
use crate::state::{QueueNeeds, Worker, WorkerConfig};
use crate::wire::envelope;
use crate::wire::publication::ChannelNames;
use error::{EXECUTOR_ENTRIES, system};
use lifecycle::{DrainLog, Lifecycle};
use memory_watch::MemoryWatch;
use ports::Wanted;
use std::io;
use std::net::TcpListener;
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Barrier, OnceLock};
use std::time::{Duration, Instant};
use supervisor::{NotifySocket, Supervisor};

/// Interval at which main checks that all threads still take turns.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A message from a thread to main.
enum News {
    /// The thread has everything it needs and begins its work. A worker would need this open-files
    /// limit for its part of `--max_connections`.
    Ready {
        pulse: Pulse,
        needed_files: usize,
    },
    Ended(Result<(), NodeError>),
}

/// Runs a node until SIGTERM or SIGINT tells it to end and it has drained; a second signal ends the
/// process at once, with code 143. SIGUSR1 reopens the log file; SIGHUP does too, and reads the
/// configuration again. Calls `started` when every port is open. [`sys::block_signals`] must have
/// been called.
///
/// The order of a start: main creates the eventfds; every worker takes its own file-descriptor
/// table; all meet at a barrier; only then is anything opened of which other tables must have no
/// copy.
pub fn run(
    config: Config,
    reloader: Reloader,
    inherited: Inherited,
    started: impl FnOnce(&Addresses),
) -> Result<(), NodeError> {
    let needs = Needs::of(&config);
    let open_files = preflight::check(&needs)?;
    let Inherited { sockets, notify_socket, watchdog } = inherited;
    let ports = Wanted::of(&config).with_passed(sockets)?;
    let otel = config.otel.clone();
    let shared = Arc::new(shared_of(config, open_files).map_err(no_seeds())?);
    let (carriers, broker) = carriers(&shared).map_err(system("making eventfds"))?;
    let (news_sender, news) = mpsc::channel();
    // Plus main.
    let threads = needs.workers + needs.executors + 1;
    let (barrier, addresses) = (Barrier::new(threads), OnceLock::new());
    let birth = Arc::new(Birth { barrier, needs, ports, addresses });
    let mut sources = Vec::new();
    for (index, carrier) in carriers.into_iter().enumerate() {
        let spans =
            otel.as_ref().map(|otel| spans::pair(index, otel.sampler, &shared.counters[index]));
        let (recorder, source) = spans.transpose().map_err(no_seeds())?.unzip();
        sources.extend(source);
        spawn_worker(index, carrier, recorder, &shared, &birth, &news_sender)?;
    }
    if let Some(broker_end) = broker {
        spawn_broker(broker_end, &shared, &birth, &news_sender)?;
    }
    let notify = notify_socket.and_then(|address| NotifySocket::of(&address));
    let lifecycle = Lifecycle::new(Arc::clone(&shared), reloader, notify.clone());
    spawn_ops(&shared, &lifecycle, &birth, &news_sender)?;
    let (addresses, held) = open_ports(&shared, &birth)?;
    let (pulses, needed_files) = await_all(&news, needs.workers + needs.executors)?;
    drop(held);
    warn_of_open_files(&shared, needed_files);
    let exporter = otel.map(|otel| Exporter::start(otel, Arc::clone(&shared), sources));
    let exporter = exporter.transpose().map_err(|error| needs.no_thread(error))?;
    started(&addresses);
    lifecycle.begin(&addresses);
    lifecycle.watch_signals().map_err(|error| needs.no_thread(error))?;
    let watch = Watch {
        pulses,
        memory: MemoryWatch::new(&shared),
        drain: DrainLog::default(),
        supervisor: notify.map(|socket| Supervisor::new(socket, watchdog, Instant::now())),
    };
    let result = live(&shared, &news, watch, &needs);
    if let Some(exporter) = exporter {
        exporter.finish();
    }
    lifecycle.handle_result(&result);
    result
}

/// Reserves the ports, and lets the threads open theirs. Returns what holds the ports until then.
fn open_ports(shared: &Shared, birth: &Birth) -> Result<(Addresses, [TcpListener; 5]), NodeError> {
    // Every thread has its own table now; what main opens from here on is in no other.
    birth.barrier.wait();
    let reserved = birth.ports.reserve();
    let addresses = match &reserved {
        Ok((addresses, _)) => Some(*addresses),
        Err(_) => None,
    };
    // Without addresses the threads end at once.
    if let Some(Addresses { ws, http, .. }) = addresses {
        let _ = shared.ports.set(Ports { ws: ws.port(), http: http.port() });
    }
    let _ = birth.addresses.set(addresses);
    birth.barrier.wait();
    reserved
}

fn warn_of_open_files(shared: &Shared, needed_files: usize) {
    let (max_connections, open_files) = (shared.at_start.max_connections, shared.open_files);
    let room = shared.room();
    if room < max_connections {
        tracing::warn!(
            "the limit of open files ({open_files}) leaves room for {room} WebSocket connections, \
             but --max_connections is {max_connections}: raise the limit to {needed_files} \
             (LimitNOFILE= in a systemd unit, ulimit -n in a shell), start more --workers, or \
             lower --max_connections"
        );
    }
}

/// Waits until all threads have everything they need.
fn await_all(news: &Receiver<News>, threads: usize) -> Result<(Vec<Pulse>, usize), NodeError> {
    let mut needed_files = 0;
    let mut pulses = Vec::with_capacity(threads);
    while pulses.len() < threads {
        match news.recv() {
            Ok(News::Ready { pulse, needed_files: needed }) => {
                pulses.push(pulse);
                needed_files = needed.max(needed_files);
            }
            Ok(News::Ended(result)) => result?,
            Err(_) => return Err(NodeError::Ended("no thread is left".into())),
        }
    }
    Ok((pulses, needed_files))
}

/// What main looks at while the threads work.
struct Watch {
    pulses: Vec<Pulse>,
    memory: MemoryWatch,
    drain: DrainLog,
    /// `None`: there is no service manager.
    supervisor: Option<Supervisor>,
}

impl Watch {
    fn look(&mut self, shared: &Shared) {
        self.memory.look(shared);
        self.drain.look(shared, Instant::now());
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.look(shared, &self.pulses, Instant::now());
        }
    }
}

/// Runs until the end: a signal and then the workers' drain, or a thread that cannot continue.
fn live(
    shared: &Shared,
    news: &Receiver<News>,
    mut watch: Watch,
    needs: &Needs,
) -> Result<(), NodeError> {
    watch.look(shared);
    let mut next_look = Instant::now() + LOOK_EVERY;
    let mut ended = 0;
    while ended < needs.workers {
        match news.recv_timeout(memory_watch::LOOK_EVERY) {
            Ok(News::Ready { .. }) => {}
            Ok(News::Ended(Ok(()))) => ended += 1,
            Ok(News::Ended(Err(error))) => return Err(error),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(NodeError::Ended("no thread is left".into()));
            }
            Err(RecvTimeoutError::Timeout) => {
                watch.look(shared);
                if Instant::now() < next_look {
                    continue;
                }
                next_look = Instant::now() + LOOK_EVERY;
                if let Some(stuck) = watch.pulses.iter_mut().find_map(Pulse::stuck_thread) {
                    // The thread cannot report the cause, but it may be visible from here.
                    preflight::ring(needs)?;
                    return Err(NodeError::Stuck { thread: stuck });
                }
            }
        }
    }
    Ok(())
}

/// What the threads wait for before they open anything.
struct Birth {
    barrier: Barrier,
    needs: Needs,
    ports: Wanted,
    /// `None`: the ports are not available.
    addresses: OnceLock<Option<Addresses>>,
}

impl Birth {
    /// Gives the calling thread its own table, and waits until main has reserved the ports. Must be
    /// called by each new thread.
    fn take_table(&self) -> Result<Option<Addresses>, NodeError> {
        let unshared = threads::unshare_files();
        self.barrier.wait();
        self.barrier.wait();
        unshared.map_err(|error| self.needs.no_thread(error))?;
        Ok(self.addresses.get().copied().flatten())
    }
}

/// Returns the result of a thread, turning a panic into an error: a node that has lost a part of
/// itself must end so that it can be restarted. The thread's data is dropped, and nothing reads
/// what it shared.
fn caught(name: &str, body: impl FnOnce() -> Result<(), NodeError>) -> Result<(), NodeError> {
    panic::catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|_| Err(NodeError::Ended(format!("{name} panicked"))))
}

/// Creates each worker's carrier, and the broker's end if it has its own thread.
fn carriers(shared: &Shared) -> io::Result<(Vec<Carrier>, Option<BrokerEnd>)> {
    let workers = shared.at_start.workers;
    match &shared.at_start.redis {
        None => Ok((Mailbox::all(workers)?.into_iter().map(Carrier::Mailbox).collect(), None)),
        Some(redis) if redis.broker_thread => {
            let (worker_ends, broker_end) = threaded::ends(workers, &shared.broker_counters)?;
            Ok((worker_ends.into_iter().map(Carrier::Threaded).collect(), Some(broker_end)))
        }
        Some(_) => Ok(((0..workers).map(|_| Carrier::Inline).collect(), None)),
    }
}

fn spawn_worker(
    index: usize,
    carrier: Carrier,
    recorder: Option<Recorder>,
    shared: &Arc<Shared>,
    birth: &Arc<Birth>,
    news: &Sender<News>,
) -> Result<(), NodeError> {
    let (shared, birth, news) = (Arc::clone(shared), Arc::clone(birth), news.clone());
    let (name, needs) = (format!("worker-{index}"), birth.needs);
    let body = move || {
        let name = format!("worker-{index}");
        let result = caught(&name, || match birth.take_table()? {
            Some(addresses) => {
                let listeners = birth.ports.listen_for_worker(index, &addresses)?;
                let thread = WorkerThread { index, carrier, recorder, needs };
                thread.run(&shared, listeners, &news)
            }
            None => Ok(()),
        });
        // Main is gone only when the process ends.
        let _ = news.send(News::Ended(result));
    };
    threads::spawn(&name, body).map_err(|error| needs.no_thread(error))
}

/// Time slice of workers that share cores: each of them, and its clients, waits for the slices of
/// the others.
const SHARED_CORE_SLICE_NS: u64 = 300_000;

/// What a worker's thread runs with.
struct WorkerThread {
    index: usize,
    carrier: Carrier,
    recorder: Option<Recorder>,
    needs: Needs,
}

impl WorkerThread {
    fn run(
        self,
        shared: &Arc<Shared>,
        [ws, http]: [Listener; 2],
        news: &Sender<News>,
    ) -> Result<(), NodeError> {
        let Self { index, carrier, recorder, needs } = self;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shares_core = shared.at_start.workers > cores;
        if shares_core && let Err(error) = sys::ask_for_slices_of(SHARED_CORE_SLICE_NS) {
            tracing::debug!(%error, "the scheduler does not support shorter time slices");
        }
        if shared.at_start.pin {
            sys::pin_to_core(index).map_err(NodeError::no_pin)?;
        }
        let mut runtime = executor(&needs, needs.ring_entries)?;
        let ring = Ring::new(needs.ring_entries)
            .map_err(|error| needs.no_ring(RingError::Setup(error)))?;
        let active = Rc::new(shared.active());
        let config = worker_config(index, shared, &active).map_err(no_seeds())?;
        let worker = Worker::new(config, clock::now());
        let http_counters = Arc::clone(&shared.http_counters[index]);
        // Everything that the worker needs for itself is open.
        let descriptors = Rc::new(Descriptors::of_this_thread(shared)?);
        http_counters.max_connections.set(descriptors.max_connections() as u64);
        let (shared_too, table) = (Arc::clone(shared), Rc::clone(&descriptors));
        let config = Rc::clone(&active);
        let ws_server = WsServer::new(worker, config, shared_too, http_counters, ring, ws, table);
        let is_inline = matches!(carrier, Carrier::Inline);
        let (shared_too, table) = (Arc::clone(shared), Rc::clone(&descriptors));
        let ports = (ws_server, HttpPort::new(http));
        let context =
            WorkerContext::new(shared_too, active, index, ports, carrier, recorder, table);
        let connections = shared.at_start.max_connections.div_ceil(shared.at_start.workers);
        let needed_files = descriptors.open_files_for(connections);
        let _ = news.send(News::Ready { pulse: Pulse::begin(), needed_files });
        let serve = async {
            pauses::observe(Arc::clone(&shared.counters[index]), shares_core);
            if let Some(redis) = shared.at_start.redis.as_ref().filter(|_| is_inline) {
                let driver = driver(shared, redis, InlineHost::new(Rc::clone(&context)));
                let broker = Rc::clone(&driver);
                context.set_broker(broker);
                pauses::spawn(driver.run());
            }
            let result = tasks::run(context).await;
            pulse::end_rounds();
            result
        };
        runtime.block_on(serve).map_err(|error| needs.not_driven(error))
    }
}

fn driver<H: Host>(shared: &Arc<Shared>, redis: &RedisSettings, host: H) -> Rc<Driver<H>> {
    let ActiveConfig { settings, projects, .. } = shared.active();
    let broker = Broker::new(BrokerConfig {
        node: settings.node,
        incarnation: Arc::clone(&shared.incarnation),
        workers: settings.workers,
        projects,
        names: ChannelNames::new(&redis.prefix),
        credentials: Credentials { url: redis.url.clone() },
        queue_timeout_ms: redis.queue_timeout_ms,
        max_envelope_bytes: envelope::max_bytes(&settings.limits),
        max_outgoing_channels: MAX_OUTGOING_CHANNELS,
        hash_keys: shared.user_keys,
        counters: Arc::clone(&shared.broker_counters),
    });
    Driver::new(broker, host, Arc::clone(shared), redis.url.clone())
}

/// Starts the broker's thread: its links, the workers' lanes and the ticks.
fn spawn_broker(
    broker_end: BrokerEnd,
    shared: &Arc<Shared>,
    birth: &Arc<Birth>,
    news: &Sender<News>,
) -> Result<(), NodeError> {
    let (shared, birth, news) = (Arc::clone(shared), Arc::clone(birth), news.clone());
    let needs = birth.needs;
    let body = move || {
        let result = caught("broker", || {
            let (Some(_), Some(redis)) = (birth.take_table()?, &shared.at_start.redis) else {
                return Ok(());
            };
            let mut runtime = executor(&needs, EXECUTOR_ENTRIES)?;
            let driver = driver(&shared, redis, broker_end);
            let _ = news.send(News::Ready { pulse: Pulse::begin(), needed_files: 0 });
            runtime.block_on(threaded::run(driver)).map_err(system("receiving from the workers"))
        });
        if result.is_err() {
            let _ = news.send(News::Ended(result));
        }
    };
    threads::spawn("broker", body).map_err(|error| needs.no_thread(error))
}

type Executor = monoio::Runtime<monoio::time::TimeDriver<monoio::IoUringDriver>>;

fn executor(needs: &Needs, entries: u32) -> Result<Executor, NodeError> {
    let mut ring = monoio_ring::IoUring::builder();
    ring.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag();
    monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .with_entries(entries)
        .uring_builder(ring)
        .enable_timer()
        .build()
        .map_err(|error| needs.no_ring(RingError::Setup(error)))
}

fn spawn_ops(
    shared: &Arc<Shared>,
    lifecycle: &Arc<Lifecycle>,
    birth: &Arc<Birth>,
    news: &Sender<News>,
) -> Result<(), NodeError> {
    let (shared, birth, news) = (Arc::clone(shared), Arc::clone(birth), news.clone());
    let reload: Arc<dyn Reload> = Arc::<Lifecycle>::clone(lifecycle);
    let needs = birth.needs;
    let body = move || {
        let result = caught("ops", || {
            let Some(addresses) = birth.take_table()? else { return Ok(()) };
            let listeners = birth.ports.listen_for_ops(&addresses)?;
            let sites = [Site::Metrics, Site::Pprof, Site::Pages];
            let mut runtime = executor(&needs, EXECUTOR_ENTRIES)?;
            let _ = news.send(News::Ready { pulse: Pulse::begin(), needed_files: 0 });
            let Addresses { ws, http, metrics, .. } = addresses;
            let ops = Ops::new(shared, [ws, http], metrics.ip(), reload);
            runtime
                .block_on(server::serve(ops, sites.into_iter().zip(listeners)))
                .map_err(system("serving ops"))
        });
        if result.is_err() {
            let _ = news.send(News::Ended(result));
        }
    };
    threads::spawn("ops", body).map_err(|error| needs.no_thread(error))
}

/// Non-random seeds would let peers aim at one bucket of a table.
fn no_seeds() -> impl FnOnce(io::Error) -> NodeError {
    system("asking the kernel for random numbers")
}

fn shared_of(config: Config, open_files: usize) -> io::Result<Shared> {
    let start = Start {
        now: clock::now(),
        open_files,
        memory_limit: config.memory_limit,
        user_keys: sys::random_keys()?,
    };
    let shared = Shared::new(config.settings, config.projects, start);
    if shared.at_start.redis.is_some() {
        // Until the broker reports otherwise.
        shared.queue.set_down("connecting to Redis");
    }
    Ok(shared)
}

fn worker_config(index: usize, shared: &Shared, active: &ActiveConfig) -> io::Result<WorkerConfig> {
    let settings = &active.settings;
    Ok(WorkerConfig {
        settings: Arc::clone(settings),
        worker: index,
        projects: Arc::clone(&active.projects),
        slots: shared.slots(),
        loads: Arc::clone(&shared.loads),
        incarnation: Arc::clone(&shared.incarnation),
        hash_keys: sys::random_keys()?,
        queue_needs: settings.redis.as_ref().map(|redis| QueueNeeds {
            routing: redis.routing,
            announces_users: settings.workers > 1,
            user_keys: shared.user_keys,
        }),
        counters: Arc::clone(&shared.counters[index]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_end_with_an_error() {
        let error = caught("worker-3", || panic!("as a test")).unwrap_err();
        assert_eq!(error.to_string(), "a thread ended early: worker-3 panicked");
        assert!(caught("worker-3", || Ok(())).is_ok());
    }
}
