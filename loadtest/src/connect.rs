//! `loadtest connect`: signed connects per second, and what an open connection costs the server.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::arguments::{Options, nanoseconds, numbers, subcommand};
use crate::client::{Closing, IDLE_NS, Ignore};
use crate::report::{self, Failures, Report};
use crate::run::{self, Common, Reactor, Targets};
use crate::server::{self, Memory};
use crate::sys::{self, CpuTime};

subcommand! {
    /// Opens signed connections, each its own user, and checks every welcome. Reports connects per
    /// second and the time from TCP connect to welcome; with --cycle as many connects as possible;
    /// with --memory-at the server's memory per connection. --max-p99 judges connect_to_welcome_us,
    /// --min-rate connects_per_s.
    #[argh(subcommand, name = "connect")]
    pub struct ConnectArguments {
        /// number of connections (1000; the last number of --memory-at)
        #[argh(option)]
        connections: [Option<u64>],

        /// connects per second, over all threads (as many as possible); the same as --connect-rate
        #[argh(option)]
        rate: [Option<f64>],

        /// seconds to keep all of them open after the last welcome (0)
        #[argh(option, default = "0.0")]
        hold: [f64],

        /// tags sent at connect, separated by commas (none)
        #[argh(option, default = "String::new()")]
        tags: [String],

        /// open a connection, wait for the welcome, close it, and repeat; a connect counts once its
        /// welcome has arrived
        #[argh(switch)]
        cycle: [bool],

        /// how --cycle closes: clean (Close frame, the server closes first), fin, reset (clean)
        #[argh(option, default = "\"clean\".to_owned()")]
        close: [String],

        /// seconds to run --cycle (10)
        #[argh(option, default = "10.0")]
        seconds: [f64],

        /// read the server's memory with this many connections open, such as 9000,19000, and
        /// report the slope; needs --pid-of-server
        #[argh(option)]
        memory_at: [Option<String>],
    }
}

impl ConnectArguments {
    /// Returns the number of connections that several processes can share.
    pub fn shared(&self) -> Option<u64> {
        let is_shared = !self.cycle && self.memory_at.is_none();
        is_shared.then(|| self.connections.unwrap_or(1000))
    }

    /// Checks the options and runs the command.
    pub fn run(&self, options: &Options) -> Result<Report, String> {
        let memory_at: Vec<u64> = match &self.memory_at {
            None => Vec::new(),
            Some(list) => numbers("--memory-at", list)?,
        };
        if !memory_at.is_sorted() || memory_at.first() == Some(&0) {
            return Err("--memory-at must be increasing numbers above 0".to_owned());
        }
        if !memory_at.is_empty() && (options.pid_of_server.is_none() || self.cycle) {
            return Err("--memory-at needs --pid-of-server and excludes --cycle".to_owned());
        }
        let last = memory_at.last().copied();
        let connections = match self.cycle {
            true => options.concurrency as u64,
            false => last.or(self.connections).unwrap_or(1000),
        };
        let closing = match self.close.as_str() {
            "clean" => Closing::Clean,
            "fin" => Closing::Fin,
            "reset" => Closing::Reset,
            other => return Err(format!("--close {other} must be clean, fin or reset")),
        };
        let mut common = options.check(connections, &self.tags)?;
        common.rate = self.rate.map_or(common.rate, |rate| rate / common.part.count as f64);
        let cycle_ns = nanoseconds("--seconds", self.seconds)?;
        let settings = Connect {
            hold_ns: nanoseconds("--hold", self.hold)?,
            cycle: self.cycle.then_some((closing, cycle_ns)),
            memory_at,
        };
        run(&common, &settings)
    }
}

/// The settings of `connect` besides the common ones.
pub struct Connect {
    /// How long all connections stay open after the last welcome.
    pub hold_ns: u64,
    /// How connections are cycled instead, and for how long.
    pub cycle: Option<(Closing, u64)>,
    /// Numbers of connections at which the server's memory is read; the last one is the total.
    pub memory_at: Vec<u64>,
}

/// Delay from the last welcome to reading the memory, in which the server frees handshake buffers.
const SETTLE_NS: u64 = 1_000_000_000;

struct Outcome {
    clients: crate::client::Clients,
    cpu: CpuTime,
}

/// The state of the coordinating thread.
#[derive(Clone, Copy)]
enum Step {
    Opening(usize),
    Settling(usize, u64),
    Holding(u64),
    Over,
}

pub fn run(common: &Common, settings: &Connect) -> Result<Report, String> {
    let live = common.live;
    let stages = match settings.memory_at.as_slice() {
        [] => vec![common.connections],
        stages => stages.to_vec(),
    };
    // Number of connections to have by now, over all threads; u64::MAX ends the threads.
    let wanted = AtomicU64::new(if settings.cycle.is_some() { 0 } else { stages[0] });
    let began_ns = sys::now_ns();
    let mut opened_ns = 0;
    let mut memory: Vec<(u64, Memory)> = Vec::new();
    let mut memory_error = None;
    let server_began = common.server_pid.map(server::cpu_ns);
    let mut server_used = None;

    let body =
        |t, ready: Result<(), String>| ready.and_then(|()| thread(common, settings, t, &wanted));
    let bar = match settings.cycle {
        Some(_) => common.bar(common.connections, "cycle"),
        None => common.bar(common.connections, "connect"),
    };
    let mut step = Step::Opening(0);
    let watch = || {
        let now = sys::now_ns();
        let welcomed = live.sum(|thread| &thread.welcomed);
        let decided = live.decided();
        let open = live.sum(|thread| &thread.open);
        bar.set_position(welcomed);
        bar.set_message(format!("{:.0}/s", welcomed as f64 * 1e9 / (now - began_ns) as f64));
        if settings.cycle.is_some() {
            return;
        }
        step = match step {
            Step::Opening(stage) if decided >= stages[stage] => {
                opened_ns = now;
                if stage == stages.len() - 1 {
                    server_used = difference(common.server_pid, server_began);
                }
                Step::Settling(stage, now)
            }
            Step::Settling(stage, since) if settings.memory_at.is_empty() => {
                debug_assert_eq!(stage, 0);
                Step::Holding(since)
            }
            Step::Settling(stage, since) if now - since > SETTLE_NS => {
                match common.server_pid.map(Memory::of) {
                    Some(Ok(read)) => memory.push((open, read)),
                    Some(Err(error)) => memory_error = Some(error),
                    None => {}
                }
                if let Some(&next) = stages.get(stage + 1) {
                    wanted.store(next, Ordering::Relaxed);
                    Step::Opening(stage + 1)
                } else {
                    Step::Holding(now)
                }
            }
            // If the server has ended, there is nothing to hold.
            Step::Holding(since)
                if now - since >= settings.hold_ns || (welcomed > 0 && open == 0) =>
            {
                wanted.store(u64::MAX, Ordering::Relaxed);
                Step::Over
            }
            same => same,
        };
    };
    let outcomes = common.run_threads(body, watch)?;
    bar.finish_and_clear();
    if settings.cycle.is_some() {
        server_used = difference(common.server_pid, server_began);
    }
    if opened_ns == 0 {
        opened_ns = sys::now_ns();
    }

    let times = Times { began_ns, opened_ns, server_ns: server_used };
    let mut report = summarize(common, settings, outcomes, times);
    if let Some(error) = memory_error {
        report.set("memory_error", error);
        report.fail();
    }
    report_memory(&mut report, &memory);
    Ok(report)
}

/// When the run began, when all connections were open, and the server's CPU time until then.
struct Times {
    began_ns: u64,
    opened_ns: u64,
    server_ns: Option<u64>,
}

fn summarize(common: &Common, settings: &Connect, outcomes: Vec<Outcome>, times: Times) -> Report {
    let mut report = common.report("connect");
    let (mut welcomed, mut refused, mut dropped, mut open) = (0, 0, 0, 0);
    let mut latency = report::new_histogram();
    let mut failures = Failures::default();
    let mut cpus = Vec::new();
    let mut targets = Targets::default();
    for Outcome { clients, cpu } in outcomes {
        targets.add_clients(&clients);
        welcomed += clients.welcomed;
        refused += clients.refused;
        dropped += clients.dropped;
        open += clients.open;
        report::merge(&mut latency, &clients.latency);
        failures.merge(clients.failures);
        cpus.push(cpu);
    }
    let elapsed_ns = match settings.cycle {
        // From start to end the threads did nothing else.
        Some((_, cycle_ns)) => cycle_ns.min(sys::now_ns() - times.began_ns),
        None => times.opened_ns - times.began_ns,
    };
    report.set("threads", common.threads);
    report.set("concurrency", common.concurrency);
    report.set("connections_welcomed", welcomed);
    report.set_fault("connections_failed", refused);
    report.set_fault("connections_ended_by_server", dropped);
    report.set("connections_open_at_end", open);
    report.set_rounded("elapsed_s", elapsed_ns as f64 / 1e9);
    if settings.memory_at.is_empty() {
        report.set_judged_rate("connects_per_s", welcomed as f64 * 1e9 / elapsed_ns.max(1) as f64);
    }
    report.set_judged_latency("connect_to_welcome_us", &latency);
    report.set_failures("failures", &failures);
    targets.report(common, &mut report);
    if settings.memory_at.is_empty() {
        run::report_cpu(&mut report, "connect", welcomed, elapsed_ns, &cpus, times.server_ns);
    }
    if welcomed == 0 {
        report.fail();
    }
    report
}

fn difference(server: Option<u32>, began: Option<u64>) -> Option<u64> {
    Some(server::cpu_ns(server?).saturating_sub(began?))
}

fn report_memory(report: &mut Report, memory: &[(u64, Memory)]) {
    if memory.is_empty() {
        return;
    }
    let table: Vec<Value> = memory
        .iter()
        .map(|(open, memory)| {
            json!({
                "connections": open,
                "rss": memory.rss,
                "pss": memory.pss,
                "private": memory.private,
            })
        })
        .collect();
    report.set("server_memory_bytes", table);
    if let ([(first_open, first), .., (last_open, last)], true) =
        (memory, memory.first().map(|m| m.0) < memory.last().map(|m| m.0))
    {
        let slope =
            |first: u64, last: u64| (last as f64 - first as f64) / (last_open - first_open) as f64;
        report.set_rounded("rss_bytes_per_connection", slope(first.rss, last.rss));
        report.set_rounded("pss_bytes_per_connection", slope(first.pss, last.pss));
        report.set_rounded("private_bytes_per_connection", slope(first.private, last.private));
    }
    if let Some((open, last)) = memory.last() {
        let per = last.private as f64 / (*open).max(1) as f64;
        report.set_rounded("private_bytes_total_over_connections", per);
    }
}

fn thread(
    common: &Common,
    settings: &Connect,
    t: usize,
    wanted: &AtomicU64,
) -> Result<Outcome, String> {
    let mut reactor = Reactor::new()?;
    let mut clients = common.clients(t, settings.cycle.map(|(closing, _)| closing));
    let end_ns = settings.cycle.map_or(u64::MAX, |(_, cycle_ns)| sys::now_ns() + cycle_ns);
    let began = CpuTime::of_this_thread();
    let mut cpu = CpuTime::default();
    // With --cycle: the welcomes so far, and the time of the last new one.
    let mut progress = (0, sys::now_ns());
    loop {
        let now = sys::now_ns();
        if clients.welcomed > progress.0 {
            progress = (clients.welcomed, now);
        }
        let is_server_gone = settings.cycle.is_some() && now - progress.1 > common.timeout_ns;
        let target = match wanted.load(Ordering::Relaxed) {
            _ if settings.cycle.is_some() => u64::MAX,
            total => total,
        };
        let over = settings.cycle.is_none() && target == u64::MAX;
        if over || now >= end_ns || is_server_gone || sys::interrupted() {
            break;
        }
        let target = if settings.cycle.is_some() { target } else { common.share(target, t) };
        let more_ns = clients.open_more(&reactor.epoll, target, now);
        let (ready, now) = reactor.wait(more_ns.min(IDLE_NS))?;
        for i in 0..ready {
            let (token, mask) = reactor.epoll.event(i);
            clients.on_event(token as usize, mask, now, &mut reactor.buffer, &mut Ignore);
        }
        common.live.of(t).show(&clients);
        if settings.cycle.is_some() || !clients.settled(target) {
            cpu = CpuTime::of_this_thread().since(began);
        }
    }
    clients.drop_all();
    Ok(Outcome { clients, cpu })
}
