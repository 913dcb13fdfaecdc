//! `loadtest unicast`: every push goes to one user; several HTTP connections push at once.
//!
//! Threads share nothing: each pushes to its own users over its own connections. Message `seq` of a
//! thread goes to its user `seq mod users`, so an arrival shows whether it reached the right one.

use std::collections::VecDeque;
use std::iter::repeat_n;
use std::sync::atomic::Ordering;

use hdrhistogram::Histogram;

use crate::arguments::{Options, check_rate, nanoseconds, subcommand};
use crate::client::{self, Clients, Handler, IDLE_NS};
use crate::http::{self, PushWriter, Pusher};
use crate::message::{self, Finder, Marks, SeqSet, Stamp};
use crate::report::{self, Failures, Report};
use crate::run::{self, Common, Pushes, Reactor, Start, Targets};
use crate::series::ThreadLive;
use crate::server;
use crate::sys::{self, CpuTime};

subcommand! {
    /// Pushes messages to one user each over keep-alive HTTP connections with one request in flight
    /// each, or as many as --pipeline. With --rate, a late push counts from its intended time in
    /// intended_to_answer_us, and from when it was sent in the other latencies.
    /// --max-p99 judges push_to_delivery_us, with --rate intended_to_delivery_us; --min-rate
    /// deliveries_per_s.
    #[argh(subcommand, name = "unicast")]
    pub struct UnicastArguments {
        /// number of HTTP connections that push (8)
        #[argh(option, default = "8")]
        pushers: [usize],

        /// requests in flight on each of them (1)
        #[argh(option, default = "1")]
        pipeline: [usize],

        /// a push is complete when it is answered and its message has arrived (when it is answered)
        #[argh(switch)]
        await_delivery: [bool],

        /// users with one connection each, pushed to in turn (1)
        #[argh(option, default = "1")]
        users: [u64],

        /// pushes per second over all pushers (each pushes as soon as its last push is complete)
        #[argh(option)]
        rate: [Option<f64>],

        /// size of the WebSocket payload, the whole push object with an id of 19 digits; at least
        /// 84 (128)
        #[argh(option, default = "128")]
        bytes: [usize],

        /// seconds to push, after the warm-up (10)
        #[argh(option, default = "10.0")]
        seconds: [f64],

        /// seconds to push before anything is measured (0.5); losses count there too
        #[argh(option, default = "0.5")]
        warmup: [f64],

        /// tags sent at connect, separated by commas (none)
        #[argh(option, default = "String::new()")]
        tags: [String],
    }
}

impl UnicastArguments {
    /// Returns the number of connections that several processes can share.
    pub fn shared(&self) -> Option<u64> {
        Some(self.users)
    }

    /// Checks the options and runs the command.
    pub fn run(&self, options: &Options) -> Result<Report, String> {
        let mut common = options.check(self.users, &self.tags)?;
        let threads = common.threads as u64;
        if self.users < threads || (self.pushers as u64) < threads {
            return Err(format!("{threads} threads need at least as many --users and --pushers"));
        }
        if self.pushers > 10_000 {
            return Err("--pushers must be at most 10,000".to_owned());
        }
        if !(1..=1_000).contains(&self.pipeline) {
            return Err("--pipeline must be 1 to 1,000".to_owned());
        }
        check_rate(self.rate)?;
        nanoseconds("--seconds", self.seconds)?;
        nanoseconds("--warmup", self.warmup)?;
        common.needs_http = true;
        let settings = Unicast {
            pushers: (common.part.share(self.pushers as u64).0 as usize).max(threads as usize),
            pipeline: self.pipeline,
            await_delivery: self.await_delivery,
            rate: self.rate.map(|rate| rate / common.part.count as f64),
            bytes: self.bytes,
            seconds: self.seconds,
            warmup_seconds: self.warmup,
        };
        run(&common, &settings)
    }
}

/// The settings of `unicast` besides the common ones. The connections are the users.
pub struct Unicast {
    pub pushers: usize,
    /// Requests in flight per pusher.
    pub pipeline: usize,
    /// A push is over once its message has arrived as well as its response.
    pub await_delivery: bool,
    /// Pushes per second over all pushers; `None`: each pushes as soon as its last push is over.
    pub rate: Option<f64>,
    pub bytes: usize,
    pub seconds: f64,
    pub warmup_seconds: f64,
}

const HTTP: u64 = 1 << 32;

/// Above this number of user-pusher pairs, the order of arrivals is not checked.
const MAX_ORDERED: usize = 4 << 20;

struct Receiver {
    live: &'static ThreadLive,
    finder: Finder,
    users: u32,
    pushers: usize,
    seen: SeqSet,
    /// Per user and pusher: the last message that arrived, plus one.
    last: Vec<u32>,
    /// The time of the current batch.
    now: u64,
    measure_from_ns: u64,
    latency: Histogram<u64>,
    /// With a rate: latency from when the push was due.
    intended_latency: Histogram<u64>,
    /// When the first push was due, and the time from one to the next.
    began_ns: u64,
    interval_ns: f64,
    deliveries: u64,
    measured: u64,
    last_ns: u64,
    duplicates: u64,
    out_of_order: u64,
    misdelivered: u64,
    foreign: u64,
    payload_len: usize,
}

impl Handler for Receiver {
    #[inline]
    fn frame(&mut self, number: u32, _: &mut Marks, payload: &[u8]) {
        let Some((seq, at_ns, pusher)) = self
            .finder
            .find(payload)
            .and_then(|found| Some((found.seq()?, found.at_ns()?, found.pusher()?)))
        else {
            self.foreign += 1;
            return;
        };
        if seq % self.users != number {
            self.misdelivered += 1;
            return;
        }
        if !self.seen.insert(seq) {
            self.duplicates += 1;
            return;
        }
        let pair = number as usize * self.pushers + usize::from(pusher);
        if let Some(last) = self.last.get_mut(pair) {
            self.out_of_order += u64::from(seq < *last);
            *last = (*last).max(seq + 1);
        }
        self.deliveries += 1;
        let from_ns = match self.interval_ns > 0.0 {
            true => intended_ns(self.began_ns, self.interval_ns, seq),
            false => at_ns,
        };
        self.live.latency.record(self.now.saturating_sub(from_ns));
        if at_ns >= self.measure_from_ns {
            self.measured += 1;
            self.last_ns = self.now;
            self.payload_len = payload.len();
            report::record(&mut self.latency, self.now.saturating_sub(at_ns));
            if self.interval_ns > 0.0 {
                let intended_ns = intended_ns(self.began_ns, self.interval_ns, seq);
                report::record(&mut self.intended_latency, self.now.saturating_sub(intended_ns));
            }
        }
    }
}

struct Source<'a> {
    common: &'a Common,
    users: u32,
    first_user: u64,
    run: u16,
    pushers: Vec<Pusher>,
    /// Number of pushers in the threads before this one.
    pushers_before: usize,
    /// By node.
    pushes: Vec<Pushes>,
    /// Pushers that may write a request, one entry per request that they may write: in turn, so
    /// that every node has its share.
    idle: VecDeque<u16>,
    /// If deliveries are awaited: pushers whose push was answered.
    undelivered: Option<Vec<(u16, http::Pending)>>,
    writer: PushWriter,
    next: u32,
    accepted: SeqSet,
    accepted_count: u64,
    accepted_measured: u64,
    /// Accepted pushes younger than the timeout, and those that did not arrive in time.
    awaited: VecDeque<(u32, u64)>,
    late_lost: u64,
    http_latency: Histogram<u64>,
    /// The same from when the push was due: includes the wait for a free pusher.
    intended_latency: Histogram<u64>,
    statuses: Failures,
    failures: Failures,
    began_ns: u64,
    measure_from_ns: u64,
    end_ns: u64,
    /// Nanoseconds from one push to the next; 0: at once.
    interval_ns: f64,
}

impl Source<'_> {
    /// Returns when message `seq` was due.
    fn intended_ns(&self, seq: u32) -> u64 {
        intended_ns(self.began_ns, self.interval_ns, seq)
    }

    /// Gives every idle pusher something to do. Returns how long there is nothing more to do.
    fn turn(&mut self, reactor: &Reactor) -> u64 {
        let mut written = None;
        loop {
            let next = self.idle.front().copied();
            // Requests of one pusher leave with one send.
            if let Some(pusher) = written.take_if(|pusher| Some(*pusher) != next) {
                self.flush(pusher, reactor);
                continue;
            }
            let Some(pusher) = next else { return IDLE_NS };
            let now = sys::now_ns();
            let mut intended_ns = now;
            if self.interval_ns > 0.0 {
                intended_ns = self.intended_ns(self.next);
            }
            if intended_ns > now || self.is_over(now) {
                if let Some(pusher) = written {
                    self.flush(pusher, reactor);
                }
                // Once the run is over, only responses are left to wait for.
                return if intended_ns > now { (intended_ns - now).min(IDLE_NS) } else { IDLE_NS };
            }
            self.writer.refresh(now);
            self.idle.pop_front();
            self.push(pusher, now, intended_ns);
            written = Some(pusher);
        }
    }

    fn flush(&mut self, pusher: u16, reactor: &Reactor) {
        if let Err(error) = self.pushers[usize::from(pusher)].flush() {
            self.reconnect(pusher, &error, reactor);
        }
    }

    /// Frees the pushers whose message has arrived by now, or never will.
    fn settle(&mut self, seen: &SeqSet, now: u64) {
        let Some(undelivered) = &mut self.undelivered else { return };
        let timeout_ns = self.common.timeout_ns;
        undelivered.retain(|(pusher, push)| {
            let waits = !seen.contains(push.seq) && now.saturating_sub(push.at_ns) < timeout_ns;
            if !waits {
                self.idle.push_back(*pusher);
            }
            waits
        });
    }

    fn push(&mut self, index: u16, at_ns: u64, intended_ns: u64) {
        let seq = self.next;
        self.next += 1;
        let stamp = Stamp { run: self.run, seq, at_ns, pusher: index };
        let user = self.first_user + u64::from(seq % self.users);
        let prefix = self.common.identity.uid_prefix.as_bytes();
        let select = |body: &mut Vec<u8>| {
            body.extend_from_slice(b"\"uids\":[\"");
            body.extend_from_slice(prefix);
            http::write_decimal(user, body);
            body.extend_from_slice(b"\"],");
        };
        self.pushes_of(index).sent += 1;
        let pusher = &mut self.pushers[usize::from(index)];
        self.writer.write(stamp, select, &pusher.host, &mut pusher.out);
        pusher.pending.push_back(http::Pending { seq, at_ns, intended_ns });
    }

    fn on_http(
        &mut self,
        index: u16,
        mask: u32,
        now: u64,
        buffer: &mut [u8],
    ) -> std::io::Result<()> {
        let node = self.node_of(index);
        let pushes = &mut self.pushes[node];
        let pusher = &mut self.pushers[usize::from(index)];
        if mask & sys::WRITABLE != 0 {
            pusher.flush()?;
        }
        pusher.read(mask, buffer, |asked, answer| {
            let is_accepted = answer.status == 200;
            if is_accepted {
                self.accepted.insert(asked.seq);
                self.awaited.push_back((asked.seq, asked.at_ns));
                self.accepted_count += 1;
                pushes.accepted += 1;
                if asked.at_ns >= self.measure_from_ns {
                    self.accepted_measured += 1;
                    report::record(&mut self.http_latency, now.saturating_sub(asked.at_ns));
                    let waited_ns = now.saturating_sub(asked.intended_ns);
                    report::record(&mut self.intended_latency, waited_ns);
                }
            } else {
                self.statuses.add(&answer.status.to_string());
            }
            match &mut self.undelivered {
                Some(undelivered) if is_accepted => undelivered.push((index, asked)),
                _ => self.idle.push_back(index),
            }
        })
    }

    /// Counts as lost, for the charts, what did not arrive in time.
    fn judge_late(&mut self, seen: &SeqSet, now: u64) {
        while let Some((seq, at_ns)) = self.awaited.front() {
            let is_here = seen.contains(*seq);
            if !is_here && now.saturating_sub(*at_ns) < self.common.timeout_ns {
                return;
            }
            self.late_lost += u64::from(!is_here);
            self.awaited.pop_front();
        }
    }

    /// Returns the index of the HTTP port that this pusher uses.
    fn node_of(&self, index: u16) -> usize {
        (self.pushers_before + usize::from(index)) % self.common.http.len()
    }

    fn pushes_of(&mut self, index: u16) -> &mut Pushes {
        let node = self.node_of(index);
        &mut self.pushes[node]
    }

    fn reconnect(&mut self, index: u16, error: &std::io::Error, reactor: &Reactor) {
        self.failures.add(&format!("http: {}", client::describe(error)));
        match connect(self.common, self.pushers_before, index, reactor) {
            Ok(pusher) => {
                let unanswered = self.pushers[usize::from(index)].pending.len();
                self.pushers[usize::from(index)] = pusher;
                self.idle.extend(repeat_n(index, unanswered));
            }
            Err(error) => {
                self.failures.add(&error);
                self.end_ns = 0;
                self.pushers[usize::from(index)].pending.clear();
            }
        }
    }

    fn is_over(&self, now: u64) -> bool {
        now >= self.end_ns || sys::interrupted()
    }
}

fn intended_ns(began_ns: u64, interval_ns: f64, seq: u32) -> u64 {
    began_ns + (f64::from(seq) * interval_ns) as u64
}

fn connect(
    common: &Common,
    before: usize,
    index: u16,
    reactor: &Reactor,
) -> Result<Pusher, String> {
    let http = common.http_of(before + usize::from(index));
    let pusher = Pusher::connect(http).map_err(|error| format!("http {http}: {error}"))?;
    let both = sys::READABLE | sys::WRITABLE;
    let added = reactor.epoll.add(pusher.fd(), both, HTTP + u64::from(index));
    added.map_err(|error| format!("epoll: {error}"))?;
    Ok(pusher)
}

struct Outcome<'a> {
    clients: Clients,
    receiver: Receiver,
    source: Source<'a>,
    connected: u64,
    cpu: CpuTime,
    server_ns: Option<u64>,
}

pub fn run(common: &Common, settings: &Unicast) -> Result<Report, String> {
    let start = Start::new(common.threads);
    let run_number = run::run_number();
    let bar = common.bar((settings.seconds * 10.0) as u64, "unicast");
    let mut last = (sys::now_ns(), 0);
    let watch = || {
        let work = common.live.sum(|thread| &thread.deliveries);
        let now = sys::now_ns();
        if now - last.0 > 500_000_000 {
            let rate = (work - last.1) as f64 * 1e9 / (now - last.0) as f64;
            bar.set_message(format!("{rate:.0} deliveries/s"));
            last = (now, work);
        }
        bar.set_position((bar.elapsed().as_secs_f64() * 10.0) as u64);
    };
    let body = |t, ready: Result<(), String>| {
        // The run number tells the threads' messages apart.
        let run_number = run_number.wrapping_add(t as u16);
        let mut clients = common.clients(t, None);
        let opened = ready
            .and_then(|()| open(common, settings, t, run_number, &mut clients, common.live.of(t)));
        let (reactor, source) = start.meet(opened)?;
        drive(settings, reactor, clients, source, common.live.of(t), t == 0)
    };
    let outcomes = common.run_threads(body, watch)?;
    bar.finish_and_clear();
    Ok(summarize(common, settings, outcomes))
}

/// Opens everything that a thread needs before the start.
fn open<'a>(
    common: &'a Common,
    settings: &Unicast,
    t: usize,
    run: u16,
    clients: &mut Clients,
    live: &'static ThreadLive,
) -> Result<(Reactor, Source<'a>), String> {
    let mut reactor = Reactor::new()?;
    let users = common.share(common.connections, t);
    reactor.open_all(clients, users, live)?;
    let count = common.share(settings.pushers as u64, t) as u16;
    let before = common.share_before(settings.pushers as u64, t) as usize;
    let pushers: Vec<_> = (0..count)
        .map(|index| connect(common, before, index, &reactor))
        .collect::<Result<_, _>>()?;
    let data_len = message::data_len(settings.bytes);
    let source = Source {
        common,
        users: users as u32,
        first_user: clients.first_user,
        run,
        pushers,
        pushers_before: before,
        pushes: vec![Pushes::default(); common.http.len()],
        idle: (0..count).flat_map(|index| repeat_n(index, settings.pipeline)).collect(),
        undelivered: settings.await_delivery.then(Vec::new),
        writer: PushWriter::new(&common.identity.pid, &common.secret, data_len),
        next: 0,
        accepted: SeqSet::default(),
        accepted_count: 0,
        accepted_measured: 0,
        awaited: VecDeque::new(),
        late_lost: 0,
        http_latency: report::new_histogram(),
        intended_latency: report::new_histogram(),
        statuses: Failures::default(),
        failures: Failures::default(),
        began_ns: 0,
        measure_from_ns: 0,
        end_ns: 0,
        interval_ns: settings.rate.map_or(0.0, |rate| 1e9 * common.threads as f64 / rate),
    };
    Ok((reactor, source))
}

fn drive<'a>(
    settings: &Unicast,
    mut reactor: Reactor,
    mut clients: Clients,
    mut source: Source<'a>,
    live: &'static ThreadLive,
    is_first: bool,
) -> Result<Outcome<'a>, String> {
    let common = source.common;
    source.began_ns = sys::now_ns();
    if is_first {
        common.live.mark("pushes");
    }
    source.measure_from_ns = source.began_ns + (settings.warmup_seconds * 1e9) as u64;
    source.end_ns = source.measure_from_ns + (settings.seconds * 1e9) as u64;
    let pairs = source.users as usize * source.pushers.len();
    let mut receiver = Receiver {
        live,
        finder: Finder::new(source.run, message::data_len(settings.bytes)),
        users: source.users,
        pushers: source.pushers.len(),
        seen: SeqSet::default(),
        last: vec![0; if pairs <= MAX_ORDERED { pairs } else { 0 }],
        now: 0,
        measure_from_ns: source.measure_from_ns,
        latency: report::new_histogram(),
        intended_latency: report::new_histogram(),
        began_ns: source.began_ns,
        interval_ns: source.interval_ns,
        deliveries: 0,
        measured: 0,
        last_ns: 0,
        duplicates: 0,
        out_of_order: 0,
        misdelivered: 0,
        foreign: 0,
        payload_len: 0,
    };
    let connected = clients.open;
    let drain_until_ns = source.end_ns + common.timeout_ns;
    let (mut cpu_began, mut cpu) = (None, CpuTime::default());
    let (mut server_began, mut server_ns) = (None, None);
    let mut closed = Vec::new();
    let mut interrupted_ns = u64::MAX;
    loop {
        // All sends come after all receives: a send takes microseconds, and messages that have
        // already arrived must be timed before it.
        let wait_ns = source.turn(&reactor);
        let (ready, now) = reactor.wait(wait_ns)?;
        if cpu_began.is_none() && now >= source.measure_from_ns {
            cpu_began = Some(CpuTime::of_this_thread());
            server_began = common.server_pid.filter(|_| is_first).map(server::cpu_ns);
        }
        receiver.now = now;
        for i in 0..ready {
            let (token, mask) = reactor.epoll.event(i);
            let buffer = &mut reactor.buffer;
            if token < HTTP {
                clients.on_event(token as usize, mask, now, buffer, &mut receiver);
            } else {
                let index = (token - HTTP) as u16;
                if let Err(error) = source.on_http(index, mask, now, buffer) {
                    closed.push((index, error));
                }
            }
        }
        for (index, error) in closed.drain(..) {
            source.reconnect(index, &error, &reactor);
        }
        source.settle(&receiver.seen, now);
        live.show(&clients);
        live.deliveries.store(receiver.deliveries, Ordering::Relaxed);
        live.doubled.store(receiver.duplicates, Ordering::Relaxed);
        source.judge_late(&receiver.seen, now);
        live.lost.store(source.late_lost, Ordering::Relaxed);
        if connected > 0 && clients.open == 0 {
            // The server is gone: nothing will arrive any more.
            source.end_ns = 0;
        }
        if !source.is_over(now) {
            continue;
        }
        if let (Some(began), true) = (cpu_began, server_ns.is_none()) {
            cpu = CpuTime::of_this_thread().since(began);
            let pid = common.server_pid.zip(server_began);
            server_ns = Some(pid.map(|(pid, began)| server::cpu_ns(pid).saturating_sub(began)));
        }
        interrupted_ns = interrupted_ns.min(now);
        let quiet = source.pushers.iter().all(|pusher| pusher.pending.is_empty());
        let drained = quiet && receiver.deliveries >= source.accepted_count;
        if drained || now >= drain_until_ns || now - interrupted_ns > common.timeout_ns {
            break;
        }
    }
    clients.drop_all();
    source.pushers.clear();
    Ok(Outcome { clients, receiver, source, connected, cpu, server_ns: server_ns.flatten() })
}

fn summarize(common: &Common, settings: &Unicast, outcomes: Vec<Outcome<'_>>) -> Report {
    let mut report = common.report("unicast");
    let mut latency = report::new_histogram();
    let mut http_latency = report::new_histogram();
    let mut intended_latency = report::new_histogram();
    let mut late_latency = report::new_histogram();
    let (mut failures, mut statuses) = (Failures::default(), Failures::default());
    let (mut connected, mut refused, mut dropped) = (0, 0, 0);
    let (mut pushed, mut accepted, mut accepted_measured) = (0, 0, 0);
    let (mut deliveries, mut measured, mut lost, mut unconfirmed) = (0, 0, 0, 0);
    let (mut duplicates, mut out_of_order, mut misdelivered, mut foreign) = (0, 0, 0, 0);
    let (mut elapsed_ns, mut payload_len) = (1, 0);
    let (mut cpus, mut server_ns) = (Vec::new(), None);
    let mut order_checked = true;
    let mut targets = Targets::default();
    for Outcome { clients, receiver, source, connected: open, cpu, server_ns: server } in outcomes {
        connected += open;
        targets.add_clients(&clients);
        targets.add_pushes(&source.pushes);
        refused += clients.refused;
        dropped += clients.dropped;
        failures.merge(clients.failures);
        pushed += u64::from(source.next);
        accepted += source.accepted_count;
        accepted_measured += source.accepted_measured;
        lost += source.accepted.missing_in(&receiver.seen);
        unconfirmed += receiver.seen.missing_in(&source.accepted);
        failures.merge(source.failures);
        statuses.merge(source.statuses);
        report::merge(&mut http_latency, &source.http_latency);
        report::merge(&mut intended_latency, &source.intended_latency);
        deliveries += receiver.deliveries;
        measured += receiver.measured;
        duplicates += receiver.duplicates;
        out_of_order += receiver.out_of_order;
        misdelivered += receiver.misdelivered;
        foreign += receiver.foreign;
        order_checked &= !receiver.last.is_empty();
        payload_len = payload_len.max(receiver.payload_len);
        report::merge(&mut latency, &receiver.latency);
        report::merge(&mut late_latency, &receiver.intended_latency);
        elapsed_ns = elapsed_ns.max(receiver.last_ns.saturating_sub(receiver.measure_from_ns));
        cpus.push(cpu);
        server_ns = server_ns.or(server);
    }
    let per_s = |count: u64| count as f64 * 1e9 / elapsed_ns as f64;
    report.set("threads", common.threads);
    report.set("users", connected);
    report.set("pushers", settings.pushers);
    report.set("pipeline", settings.pipeline);
    if let Some(rate) = settings.rate {
        report.set_rounded("rate_wanted_per_s", rate);
    }
    report.set("payload_bytes", payload_len);
    report.set("pushes", pushed);
    report.set("pushes_accepted", accepted);
    report.set("deliveries", deliveries);
    report.set("deliveries_measured", measured);
    report.set_rounded("elapsed_s", elapsed_ns as f64 / 1e9);
    report.set_rounded("pushes_accepted_per_s", per_s(accepted_measured));
    report.set_judged_rate("deliveries_per_s", per_s(measured));
    report.set_histogram("http_us", &http_latency);
    if settings.rate.is_some() {
        report.set_histogram("intended_to_answer_us", &intended_latency);
    }
    match settings.rate {
        None => report.set_judged_latency("push_to_delivery_us", &latency),
        Some(_) => {
            report.set_histogram("push_to_delivery_us", &latency);
            report.set_judged_latency("intended_to_delivery_us", &late_latency);
        }
    }
    report.set_lost("lost", lost);
    report.set_lost("duplicates", duplicates);
    report.set_lost("misdelivered", misdelivered);
    match order_checked {
        true => report.set_fault("out_of_order", out_of_order),
        false => report.set("out_of_order", "not checked: too many users"),
    }
    report.set("delivered_without_success", unconfirmed);
    report.set("foreign_frames", foreign);
    report.set_fault("connections_failed", refused);
    report.set_fault("connections_ended_by_server", dropped);
    report.set_failures("http_not_200", &statuses);
    report.set_failures("failures", &failures);
    targets.report(common, &mut report);
    run::report_cpu(&mut report, "push", measured, elapsed_ns, &cpus, server_ns);
    if deliveries == 0 {
        report.fail();
    }
    report
}
