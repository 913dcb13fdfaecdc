//! `loadtest requests`: clients send requests and business servers answer them, both on this side
//! and in one thread.
//!
//! Each client counts its request ids from 0, so different clients use the same ids: an answer sent
//! to the wrong client has an id that is pending there, and only `data` reveals it.

pub mod answerer;
pub mod asker;

use std::iter::repeat_n;
use std::sync::atomic::Ordering;

use crate::arguments::{self, Options, check_rate, nanoseconds, subcommand};
use crate::business::{Business, TOKENS};
use crate::client::{Clients, IDLE_NS};
use crate::report::Report;
use crate::run::{self, Common, Reactor, Targets};
use crate::series::ThreadLive;
use crate::server;
use crate::sys::{self, CpuTime};
use answerer::Answerer;
use asker::Asker;

subcommand! {
    /// Clients send requests and business servers answer them, both in this tool, in one thread.
    /// Every request must get exactly one answer, its own, or the run fails. With --rate, a late
    /// request counts from its intended time in intended_to_answer_us.
    /// --max-p99 judges request_to_answer_us, with --rate intended_to_answer_us; --min-rate
    /// requests_per_s.
    #[argh(subcommand, name = "requests")]
    pub struct RequestsArguments {
        /// number of clients, one connection and one user each (8)
        #[argh(option, default = "8")]
        clients: [u64],

        /// number of business servers, one connection each (1)
        #[argh(option, default = "1")]
        servers: [u64],

        /// the nodes that they connect to in turn, host:port, separated by commas (as --ws)
        #[argh(option)]
        server_ws: [Option<String>],

        /// requests in flight of each client (1)
        #[argh(option, default = "1")]
        outstanding: [usize],

        /// requests per second over all clients (each sends the next as soon as it is answered)
        #[argh(option)]
        rate: [Option<f64>],

        /// size of a request's WebSocket payload; at least 76 (128)
        #[argh(option, default = "128")]
        bytes: [usize],

        /// seconds to send requests, after the warm-up (10)
        #[argh(option, default = "10.0")]
        seconds: [f64],

        /// seconds of requests before anything is measured (0.5); losses count there too
        #[argh(option, default = "0.5")]
        warmup: [f64],
    }
}

impl RequestsArguments {
    /// Checks the options and runs the command.
    pub fn run(&self, options: &Options) -> Result<Report, String> {
        let common = options.check(self.clients, "")?;
        if common.threads > 1 {
            return Err(
                "requests uses one thread, in which clients and servers take turns".to_owned()
            );
        }
        if !(1..=10_000).contains(&self.clients) {
            return Err("--clients must be 1 to 10,000".to_owned());
        }
        if !(1..=1_000).contains(&self.outstanding) {
            return Err("--outstanding must be 1 to 1,000".to_owned());
        }
        check_rate(self.rate)?;
        nanoseconds("--seconds", self.seconds)?;
        nanoseconds("--warmup", self.warmup)?;
        let ws = self.server_ws.as_deref().unwrap_or(&options.ws);
        let settings = Requests {
            business: arguments::business(self.servers, ws, "request")?,
            outstanding: self.outstanding,
            rate: self.rate,
            bytes: self.bytes,
            seconds: self.seconds,
            warmup_seconds: self.warmup,
        };
        run(&common, &settings)
    }
}

/// The settings of `requests` besides the common ones. The connections are the clients.
pub struct Requests {
    pub business: Business,
    /// Requests in flight per connection.
    pub outstanding: usize,
    /// Requests per second over all clients; `None`: each client sends one as soon as the last is
    /// answered.
    pub rate: Option<f64>,
    pub bytes: usize,
    pub seconds: f64,
    pub warmup_seconds: f64,
}

/// Until the first answer: how soon a client retries if its node knows no server yet.
const ASK_AGAIN_NS: u64 = 5_000_000;
/// How long to wait for a second answer to the last request.
const SETTLE_NS: u64 = 100_000_000;

/// Both sides, on one epoll.
struct Sides<'a> {
    common: &'a Common,
    reactor: Reactor,
    clients: Clients,
    servers: Clients,
    asker: Asker,
    answerer: Answerer<'a>,
}

/// Figures of the time between the warm-up and the end.
#[derive(Default)]
struct Used {
    cpu: CpuTime,
    server_ns: Option<u64>,
}

struct Outcome<'a> {
    clients: Clients,
    servers: Clients,
    asker: Asker,
    answerer: Answerer<'a>,
    /// Time until every client had one answer.
    known_ns: u64,
    used: Used,
}

pub fn run(common: &Common, settings: &Requests) -> Result<Report, String> {
    let bar = common.bar((settings.seconds * 10.0) as u64, "requests");
    let mut last = (sys::now_ns(), 0);
    let watch = || {
        let work = common.live.sum(|thread| &thread.deliveries);
        let now = sys::now_ns();
        if now - last.0 > 500_000_000 {
            let rate = (work - last.1) as f64 * 1e9 / (now - last.0) as f64;
            bar.set_message(format!("{rate:.0} answers/s"));
            last = (now, work);
        }
        bar.set_position((bar.elapsed().as_secs_f64() * 10.0) as u64);
    };
    let body = |_, ready: Result<(), String>| {
        ready.and_then(|()| thread(common, settings, common.live.of(0)))
    };
    let outcomes = common.run_threads(body, watch)?;
    bar.finish_and_clear();
    let outcome = outcomes.into_iter().next().ok_or("no request was sent")?;
    Ok(summarize(common, settings, outcome))
}

fn thread<'a>(
    common: &'a Common,
    settings: &Requests,
    live: &'static ThreadLive,
) -> Result<Outcome<'a>, String> {
    let run = run::run_number();
    let mut reactor = Reactor::new()?;
    let servers = settings.business.open(common, &mut reactor)?;
    let mut clients = common.clients(0, None);
    clients.sends = true;
    let answerer =
        Answerer::new(&common.identity, common.first_user, run, settings.business.servers);
    let mut asker = Asker::new(settings.bytes, run, common.connections as usize);
    asker.live = Some(live);
    let mut sides = Sides { common, reactor, clients, servers, asker, answerer };
    sides.open_clients(live)?;
    let known_ns = sides.ask_until_known()?;
    let used = sides.drive(settings, live)?;
    let Sides { mut clients, mut servers, asker, answerer, .. } = sides;
    clients.drop_all();
    servers.drop_all();
    Ok(Outcome { clients, servers, asker, answerer, known_ns, used })
}

impl Sides<'_> {
    /// Waits, then handles what has arrived.
    fn step(&mut self, wait_ns: u64) -> Result<u64, String> {
        let (ready, now) = self.reactor.wait(wait_ns)?;
        self.asker.now = now;
        for i in 0..ready {
            let (token, mask) = self.reactor.epoll.event(i);
            let buffer = &mut self.reactor.buffer;
            if token < TOKENS {
                self.clients.on_event(token as usize, mask, now, buffer, &mut self.asker);
            } else {
                let index = (token - TOKENS) as usize;
                self.servers.on_event(index, mask, now, buffer, &mut self.answerer);
            }
        }
        Ok(now)
    }

    fn open_clients(&mut self, live: &'static ThreadLive) -> Result<(), String> {
        let count = self.common.connections;
        while !self.clients.settled(count) && !sys::interrupted() {
            let more_ns = self.clients.open_more(&self.reactor.epoll, count, sys::now_ns());
            self.step(more_ns.min(IDLE_NS))?;
            live.show(&self.clients);
        }
        for (slot, number) in self.clients.open_slots() {
            self.asker.opened(slot, number);
        }
        match self.asker.idle.is_empty() {
            true => Err(format!("no client is open: {}", self.clients.failures.to_text())),
            false => Ok(()),
        }
    }

    /// Has every client send requests until it gets an answer, and returns the time that took. A
    /// server's welcome at its node does not guarantee that other nodes know it by then.
    fn ask_until_known(&mut self) -> Result<u64, String> {
        let asking = self.asker.idle.len() as u64;
        let began_ns = sys::now_ns();
        self.asker.unserved = Some(Vec::new());
        let (mut now, mut again_ns) = (began_ns, began_ns + ASK_AGAIN_NS);
        while self.asker.answered < asking {
            if sys::interrupted() || now - began_ns > self.common.timeout_ns {
                let unserved = self.asker.unserved.as_ref().map_or(0, Vec::len);
                let missing = asking - self.asker.answered;
                let why = self.asker.refusals.to_text();
                return Err(format!(
                    "{missing} of {asking} clients got no answer to their first request: no server \
                     ({unserved}), wrong answer ({}), {why}",
                    self.asker.foreign
                ));
            }
            if let Some(unserved) = &mut self.asker.unserved
                && now >= again_ns
            {
                self.asker.idle.extend(unserved.drain(..));
                again_ns = now + ASK_AGAIN_NS;
            }
            self.asker.turn(&mut self.clients);
            // Clients with an answer wait for the others.
            now = self.step(again_ns.saturating_sub(now).min(IDLE_NS))?;
            self.asker.idle.clear();
        }
        self.asker.unserved = None;
        Ok(now - began_ns)
    }

    fn drive(&mut self, settings: &Requests, live: &'static ThreadLive) -> Result<Used, String> {
        self.common.live.mark("requests");
        let asker = &mut self.asker;
        let began_ns = sys::now_ns();
        asker.began = (began_ns, asker.next);
        asker.interval_ns = settings.rate.map_or(0.0, |rate| 1e9 / rate);
        asker.measure_from_ns = began_ns + (settings.warmup_seconds * 1e9) as u64;
        asker.end_ns = asker.measure_from_ns + (settings.seconds * 1e9) as u64;
        for (_, number) in self.clients.open_slots() {
            asker.idle.extend(repeat_n(number, settings.outstanding));
        }
        let (measure_from_ns, end_ns) = (asker.measure_from_ns, asker.end_ns);
        let server_pid = self.common.server_pid;
        let mut began = None;
        let mut used = None;
        let mut quiet_since_ns = None;
        let mut over_since_ns = u64::MAX;
        loop {
            let wait_ns = self.asker.turn(&mut self.clients);
            let now = self.step(wait_ns)?;
            live.show(&self.clients);
            live.doubled.store(self.asker.duplicates, Ordering::Relaxed);
            live.deliveries.store(self.asker.answered, Ordering::Relaxed);
            if began.is_none() && now >= measure_from_ns {
                began = Some((CpuTime::of_this_thread(), server_pid.map(server::cpu_ns)));
            }
            let has_both = self.clients.open > 0 && self.servers.open > 0;
            if now < end_ns && has_both && !sys::interrupted() {
                continue;
            }
            if let (None, Some((cpu, server_began))) = (&used, began) {
                let server_ns = server_pid.map(server::cpu_ns);
                used = Some(Used {
                    cpu: CpuTime::of_this_thread().since(cpu),
                    server_ns: server_ns.zip(server_began).map(|(ns, was)| ns.saturating_sub(was)),
                });
            }
            over_since_ns = over_since_ns.min(now);
            if self.asker.unanswered() == 0 {
                quiet_since_ns = quiet_since_ns.or(Some(now));
            }
            // A closed connection answers nothing.
            let is_settled =
                !has_both || quiet_since_ns.is_some_and(|since| now - since > SETTLE_NS);
            if is_settled || now - over_since_ns > self.common.timeout_ns {
                break;
            }
        }
        Ok(used.unwrap_or_default())
    }
}

fn summarize(common: &Common, settings: &Requests, outcome: Outcome<'_>) -> Report {
    let Outcome { clients, servers, asker, answerer, known_ns, used } = outcome;
    let lost = asker.unanswered();
    let payload_len = asker.payload_len();
    let elapsed_ns = asker.last_ns.saturating_sub(asker.measure_from_ns).max(1);
    let mut targets = Targets::default();
    targets.add_clients(&clients);
    let mut failures = clients.failures;
    failures.merge(servers.failures);
    let mut report = common.report("requests");
    report.set("threads", common.threads);
    report.set("clients", clients.welcomed);
    report.set("servers", servers.welcomed);
    report.set("outstanding", settings.outstanding);
    if let Some(rate) = settings.rate {
        report.set_rounded("rate_wanted_per_s", rate);
    }
    report.set("payload_bytes", payload_len);
    report.set_rounded("server_known_after_ms", known_ns as f64 / 1e6);
    report.set("answered_no_server_before", asker.refused_at_first);
    report.set("requests", asker.next);
    report.set("requests_answered", asker.answered);
    report.set("requests_measured", asker.measured);
    report.set("requests_by_server", answerer.got);
    report.set_rounded("elapsed_s", elapsed_ns as f64 / 1e9);
    report.set_judged_rate("requests_per_s", asker.measured as f64 * 1e9 / elapsed_ns as f64);
    match settings.rate {
        None => report.set_judged_latency("request_to_answer_us", &asker.latency),
        Some(_) => {
            report.set_histogram("request_to_answer_us", &asker.latency);
            report.set_judged_latency("intended_to_answer_us", &asker.intended_latency);
        }
    }
    report.set_lost("lost", lost);
    report.set_lost("duplicates", asker.duplicates);
    report.set_fault("foreign", asker.foreign);
    report.set_fault("doubled_at_servers", answerer.doubled);
    report.set_fault("misattributed", answerer.misattributed);
    report.set("foreign_frames", asker.foreign_frames + answerer.foreign_frames);
    report.set_fault("connections_failed", clients.refused);
    report.set_fault("connections_ended_by_server", clients.dropped + servers.dropped);
    report.set_failures("refused", &asker.refusals);
    report.set_failures("failures", &failures);
    targets.report(common, &mut report);
    let cpus = [used.cpu];
    run::report_cpu(&mut report, "request", asker.measured, elapsed_ns, &cpus, used.server_ns);
    if asker.measured == 0 {
        report.fail();
    }
    report
}

#[cfg(test)]
pub mod tests {
    use std::ops::ControlFlow;

    use ws_cluster_wire::websocket::{Inbound, Message};

    /// Returns the payloads of these frames, as the server reads them.
    pub fn client_payloads(frames: &[u8]) -> Vec<String> {
        let mut payloads = Vec::new();
        let mut kept = None;
        Inbound::read(&mut kept, &mut frames.to_vec(), 1 << 20, &mut |message| {
            let Message::Text(text) = message else { panic!("not a text: {message:?}") };
            payloads.push(String::from_utf8(text.to_vec()).unwrap());
            ControlFlow::Continue(())
        })
        .unwrap();
        assert!(kept.is_none(), "a frame is cut off");
        payloads
    }
}
