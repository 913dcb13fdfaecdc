//! Shared by all commands: resolved settings, threads, progress.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use serde_json::json;

use crate::client::{Clients, Closing, IDLE_NS, Ignore, NodeCounts, Opening};
use crate::identity::Identity;
use crate::metrics::{Place, Watcher};
use crate::preflight;
use crate::processes::{self, Part};
use crate::report::Report;
use crate::sampler::{Sampler, Series};
use crate::series::{Live, ThreadLive};
use crate::sys::{self, CpuTime, Epoll};
use crate::thresholds::Thresholds;

/// The settings common to all commands, checked.
pub struct Common {
    pub identity: Identity,
    /// The HTTP ports, at least one.
    pub http: Vec<SocketAddrV4>,
    pub secret: String,
    pub connections: u64,
    pub threads: usize,
    pub concurrency: usize,
    pub rate: f64,
    pub timeout_ns: u64,
    pub sources: Vec<Ipv4Addr>,
    pub first_user: u64,
    pub pin: Vec<usize>,
    pub progress: bool,
    pub server_pid: Option<u32>,
    /// What the threads publish while they run.
    pub live: &'static Live,
    /// The servers whose figures are read once a second.
    pub metrics: Vec<Place>,
    pub thresholds: Thresholds,
    /// Which of several processes this is.
    pub part: Part,
    /// Whether the command pushes over HTTP.
    pub needs_http: bool,
    /// The samples of the threads' counters, once they have ended.
    pub series: Mutex<Option<Series>>,
}

/// Connections per source address: the system has about 28,000 ports for each, and finding a free
/// one takes long once half of them are in use.
const CONNECTIONS_PER_SOURCE: u64 = 4_000;
/// With one source address, the kernel's search for a free port takes long: 96 us per connection
/// against 31 with eight or more.
const MIN_SOURCES: u64 = 32;

/// Reserved for epoll, wakers, pushing connections and the standard streams.
pub const SPARE_FILES: u64 = 400;
/// Needing more threads than this means that the limit of open files is far too low.
const MAX_THREADS: usize = 256;

impl Common {
    /// Returns thread `t`'s share of `total`.
    pub fn share(&self, total: u64, t: usize) -> u64 {
        let (t, threads) = (t as u64, self.threads as u64);
        total * (t + 1) / threads - total * t / threads
    }

    /// Returns the clients of thread `t`, none of them open.
    pub fn clients(&self, t: usize, cycle: Option<Closing>) -> Clients {
        let capacity = self.share(self.connections, t) as usize;
        let opening = Opening {
            concurrency: self.concurrency.div_ceil(self.threads),
            rate: self.rate / self.threads as f64,
            timeout_ns: self.timeout_ns,
            sources: self.sources.clone(),
            cycle,
        };
        let first_user = match cycle {
            None => self.first_user_of(t),
            Some(_) => self.first_user + 1_000_000_000 * t as u64,
        };
        let capacity = if cycle.is_some() { opening.concurrency } else { capacity };
        let mut clients = Clients::new(self.identity.clone(), opening, first_user, capacity);
        clients.live = Some(self.live.of(t));
        clients
    }

    /// Returns the HTTP port that pushing connection `i` uses.
    pub fn http_of(&self, i: usize) -> SocketAddrV4 {
        self.http[i % self.http.len()]
    }

    /// Returns the sum of the shares of `total` of the threads before `t`.
    pub fn share_before(&self, total: u64, t: usize) -> u64 {
        total * t as u64 / self.threads as u64
    }

    /// Returns the number of thread `t`'s first user. Threads have disjoint users.
    pub fn first_user_of(&self, t: usize) -> u64 {
        self.first_user + self.connections.div_ceil(self.threads as u64) * t as u64
    }

    /// Returns a report with the samples of the run.
    pub fn report(&self, command: &str) -> Report {
        let mut report = Report::new(command);
        report.thresholds = self.thresholds.clone();
        report.series = self.series.lock().unwrap_or_else(PoisonError::into_inner).take();
        report
    }

    /// Returns a progress bar of `length`, on stderr, or an invisible one.
    pub fn bar(&self, length: u64, what: &str) -> ProgressBar {
        let bar =
            ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr_with_hz(4));
        if !self.progress {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if let Ok(style) = ProgressStyle::with_template("{prefix:>10} [{bar:40}] {pos}/{len} {msg}")
        {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(what.to_owned());
        bar
    }

    /// Names the phase that begins on stderr if no progress bar shows it.
    pub fn announce(&self, phase: &str) {
        if !self.progress && !self.part.is_child() {
            eprintln!("loadtest: phase {phase}");
        }
    }

    /// Runs `body` once per thread, each with its own descriptor table and core, and meanwhile
    /// calls `watch` here twenty times a second until every thread is done. The body learns whether
    /// its thread got what it needs, so that it can tell the threads that wait for it.
    pub fn run_threads<R: Send>(
        &self,
        body: impl Fn(usize, Result<(), String>) -> Result<R, String> + Sync,
        watch: impl FnMut(),
    ) -> Result<Vec<R>, String> {
        if let Some(&core) = self.pin.first() {
            sys::pin_to_core(core).map_err(|error| format!("core {core}: {error}"))?;
        }
        // Of several processes, the parent checks for all.
        if !self.part.is_child() {
            for warning in preflight::check(self)? {
                eprintln!("loadtest: warning: {warning}");
            }
        }
        self.run_here(self.threads, |t| body(t, self.prepare_thread(t)), watch)
    }

    /// Does the same with threads that need neither.
    pub fn run_here<R: Send>(
        &self,
        threads: usize,
        body: impl Fn(usize) -> Result<R, String> + Sync,
        mut watch: impl FnMut(),
    ) -> Result<Vec<R>, String> {
        let mut sampler = Sampler::start(self.live, Watcher::start(&self.metrics));
        let mut told_ns = sys::now_ns();
        let results = thread::scope(|scope| {
            let threads: Vec<_> = (0..threads)
                .map(|t| {
                    let body = &body;
                    scope.spawn(move || body(t))
                })
                .collect();
            while threads.iter().any(|thread| !thread.is_finished()) {
                watch();
                sampler.turn();
                if self.part.is_child() && sys::now_ns() - told_ns > 500_000_000 {
                    told_ns = sys::now_ns();
                    processes::tell_sample(self.live);
                }
                thread::sleep(Duration::from_millis(50));
            }
            watch();
            if self.part.is_child() {
                processes::tell_sample(self.live);
            }
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|_| Err("a thread panicked".to_owned()))
            };
            threads.into_iter().map(join).collect()
        });
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        *series = Some(sampler.finish());
        results
    }

    fn prepare_thread(&self, t: usize) -> Result<(), String> {
        if let Err(error) = sys::own_file_table() {
            // A container's seccomp profile may refuse it: then all threads share one table.
            let needed = self.connections + SPARE_FILES;
            let limit = sys::raise_file_limit();
            if needed > limit {
                return Err(format!(
                    "a table of open files for each thread is refused here (unshare: {error}), and \
                     one table of {limit} is too small for {} connections: it holds {}. Raise the \
                     limit with ulimit -n {needed} (docker run --ulimit nofile={needed}), allow \
                     unshare, or start several tools with --first-user",
                    self.connections,
                    limit.saturating_sub(SPARE_FILES)
                ));
            }
        }
        sys::exact_timers();
        if !self.pin.is_empty() {
            let core = self.pin[t % self.pin.len()];
            sys::pin_to_core(core).map_err(|error| format!("core {core}: {error}"))?;
        }
        Ok(())
    }
}

/// Settings that are derived from others or checked together.
pub struct Derived {
    pub threads: usize,
    pub sources: Vec<Ipv4Addr>,
}

/// Returns the threads and source addresses that `connections` need.
pub fn derive(
    ws: &[SocketAddrV4],
    connections: u64,
    threads: Option<usize>,
    sources: Option<usize>,
) -> Result<Derived, String> {
    let per_thread = sys::raise_file_limit().saturating_sub(SPARE_FILES).clamp(1, 1 << 30);
    let needed = connections.div_ceil(per_thread).max(1) as usize;
    let threads = threads.unwrap_or(needed.min(MAX_THREADS));
    if threads < needed && needed > MAX_THREADS {
        return Err(format!(
            "{connections} connections need {needed} tables of open files with {per_thread} each, \
             a thread for each table; at most {MAX_THREADS} are possible, for {} connections. \
             Raise the limit: ulimit -Hn {} as root, then start this again",
            per_thread * MAX_THREADS as u64,
            connections.div_ceil(MAX_THREADS as u64) + SPARE_FILES
        ));
    }
    if threads < needed {
        return Err(format!(
            "{connections} connections need {needed} threads: the limit of open files allows \
             {per_thread} in each. Omit --threads, or raise the limit: ulimit -n {}",
            connections.div_ceil(threads as u64) + SPARE_FILES
        ));
    }
    let is_loopback = ws.iter().all(|ws| ws.ip().is_loopback());
    let automatic = match is_loopback {
        true => connections.div_ceil(CONNECTIONS_PER_SOURCE).max(MIN_SOURCES) as usize,
        false => 0,
    };
    let count = match sources.unwrap_or(automatic) {
        1 if sources.is_none() => 0,
        count => count,
    };
    if count > 0 && !is_loopback {
        return Err("--sources works only with nodes at 127.0.0.0/8".to_owned());
    }
    let base = u32::from(Ipv4Addr::LOCALHOST);
    let sources = (0..count as u32).map(|i| Ipv4Addr::from(base + i)).collect();
    Ok(Derived { threads, sources })
}

/// A thread's event loop: epoll and the receive buffer.
pub struct Reactor {
    pub epoll: Epoll,
    pub buffer: Vec<u8>,
    last_ready: usize,
}

/// Events per wait, and so per clock read: a batch takes about 0.2 ms.
const BATCH: usize = 256;
const BUFFER: usize = 256 << 10;
/// From this number of events at once on, a thread yields the core. With many more threads than
/// cores, each would otherwise keep it until the scheduler's next tick, up to 4 ms.
const LONG_BATCH: usize = 2;

impl Reactor {
    pub fn new() -> Result<Reactor, String> {
        let epoll = Epoll::new(BATCH).map_err(|error| format!("epoll: {error}"))?;
        Ok(Reactor { epoll, buffer: vec![0; BUFFER], last_ready: 0 })
    }

    /// Waits for at most `timeout_ns`; returns the number of events and the time.
    pub fn wait(&mut self, timeout_ns: u64) -> Result<(usize, u64), String> {
        if self.last_ready >= LONG_BATCH {
            thread::yield_now();
        }
        let ready = self.epoll.wait(timeout_ns).map_err(|error| format!("epoll: {error}"))?;
        self.last_ready = ready;
        Ok((ready, sys::now_ns()))
    }

    /// Opens `count` connections and returns once each is welcomed or refused, or the user
    /// interrupts the run.
    pub fn open_all(
        &mut self,
        clients: &mut Clients,
        count: u64,
        live: &ThreadLive,
    ) -> Result<(), String> {
        while !clients.settled(count) && !sys::interrupted() {
            let more_ns = clients.open_more(&self.epoll, count, sys::now_ns());
            let (ready, now) = self.wait(more_ns.min(IDLE_NS))?;
            for i in 0..ready {
                let (token, mask) = self.epoll.event(i);
                let index = (token - clients.tokens_from) as usize;
                clients.on_event(index, mask, now, &mut self.buffer, &mut Ignore);
            }
            live.show(clients);
        }
        Ok(())
    }
}

/// A barrier for the threads between opening and pushing.
pub struct Start {
    barrier: Barrier,
    /// This is one of several processes, which wait for each other as well.
    is_child: bool,
    /// A thread failed: nobody may wait for it.
    pub stop: AtomicBool,
}

impl Start {
    pub fn new(threads: usize) -> Start {
        Start {
            barrier: Barrier::new(threads),
            is_child: Part::of_this_process().is_child(),
            stop: AtomicBool::new(false),
        }
    }

    /// Waits for all threads; an error in one ends all.
    pub fn meet<T>(&self, result: Result<T, String>) -> Result<T, String> {
        if result.is_err() {
            self.stop.store(true, Ordering::Relaxed);
        }
        if self.barrier.wait().is_leader() && self.is_child {
            processes::meet();
        }
        if self.is_child {
            self.barrier.wait();
        }
        let value = result?;
        match self.stop.load(Ordering::Relaxed) {
            true => Err(OTHER_FAILED.to_owned()),
            false => Ok(value),
        }
    }
}

const OTHER_FAILED: &str = "another thread failed";

/// Outcomes of the pushes over one node's HTTP port.
#[derive(Clone, Copy, Default)]
pub struct Pushes {
    pub sent: u64,
    pub accepted: u64,
}

/// The counts of each of several targets.
#[derive(Default)]
pub struct Targets {
    nodes: Vec<NodeCounts>,
    pushes: Vec<Pushes>,
}

impl Targets {
    pub fn add_clients(&mut self, clients: &Clients) {
        self.nodes.resize(clients.by_node.len().max(self.nodes.len()), NodeCounts::default());
        for (sum, node) in self.nodes.iter_mut().zip(&clients.by_node) {
            sum.welcomed += node.welcomed;
            sum.refused += node.refused;
            sum.dropped += node.dropped;
        }
    }

    pub fn add_pushes(&mut self, pushes: &[Pushes]) {
        self.pushes.resize(pushes.len().max(self.pushes.len()), Pushes::default());
        for (sum, node) in self.pushes.iter_mut().zip(pushes) {
            sum.sent += node.sent;
            sum.accepted += node.accepted;
        }
    }

    /// With one target, the other figures already show this.
    pub fn report(&self, common: &Common, report: &mut Report) {
        if self.nodes.len() > 1 {
            let nodes = common.identity.ws.iter().zip(&self.nodes).map(|(ws, node)| {
                json!({
                    "ws": ws.to_string(),
                    "connections_welcomed": node.welcomed,
                    "connections_failed": node.refused,
                    "connections_ended_by_server": node.dropped,
                })
            });
            report.set("ws_targets", nodes.collect::<Vec<_>>());
        }
        if self.pushes.len() > 1 {
            let nodes = common.http.iter().zip(&self.pushes).map(|(http, node)| {
                json!({
                    "http": http.to_string(),
                    "pushes": node.sent,
                    "pushes_accepted": node.accepted,
                })
            });
            report.set("http_targets", nodes.collect::<Vec<_>>());
        }
    }
}

/// Returns a number that identifies the messages of this run.
pub fn run_number() -> u16 {
    let now = sys::now_ns();
    ((now >> 10) ^ (now >> 30) ^ u64::from(std::process::id())) as u16
}

/// Reports the CPU time of tool and server over `elapsed_ns` and `units` of work.
pub fn report_cpu(
    report: &mut Report,
    unit: &str,
    units: u64,
    elapsed_ns: u64,
    threads: &[CpuTime],
    server_ns: Option<u64>,
) {
    let all = threads.iter().fold(CpuTime::default(), |sum, cpu| sum.plus(*cpu));
    let units = units.max(1) as f64;
    let percent = |us: u64| us as f64 * 100_000.0 / elapsed_ns.max(1) as f64;
    report.set_rounded("tool_cpu_user_s", all.user_us as f64 / 1e6);
    report.set_rounded("tool_cpu_system_s", all.system_us as f64 / 1e6);
    report.set_rounded(&format!("tool_cpu_us_per_{unit}"), all.total_us() as f64 / units);
    let busiest = threads.iter().map(|cpu| cpu.total_us()).max().unwrap_or(0);
    report.set_rounded("tool_busiest_thread_percent", percent(busiest));
    report.set("tool_was_bottleneck", percent(busiest) > 90.0);
    if let Some(server_ns) = server_ns {
        report.set_rounded(&format!("server_cpu_us_per_{unit}"), server_ns as f64 / 1000.0 / units);
        report.set_rounded("server_cpu_percent", percent(server_ns / 1000));
    }
}
