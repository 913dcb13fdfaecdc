//! `loadtest fanout`: every message goes to every connection.
//!
//! Thread 0 pushes over one pipelined HTTP connection to each node, so the order of the messages of
//! each HTTP connection is guaranteed. Every thread counts, per message, its connections that have
//! it; once all have it, the thread removes itself from the message's slot, and the last one wakes
//! thread 0.

mod source;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hdrhistogram::Histogram;

use crate::arguments::{Options, check_rate, nanoseconds, subcommand};
use crate::client::{Clients, Handler, IDLE_NS};
use crate::message::{self, Arrival, FRAME_OVERHEAD, Finder, Marks};
use crate::processes::Part;
use crate::report::{self, Failures, Report};
use crate::run::{self, Common, Reactor, Start, Targets};
use crate::series::ThreadLive;
use crate::server;
use crate::sys::{self, CpuTime, Waker};
use source::{Pushed, Source};

subcommand! {
    /// Pushes messages to every connection. Once all connections have received a message, the next
    /// one is pushed, over one pipelined HTTP connection.
    /// --max-p99 judges push_to_delivery_us, with --rate intended_to_delivery_us; --min-rate
    /// deliveries_per_s.
    #[argh(subcommand, name = "fanout")]
    pub struct FanoutArguments {
        /// number of connections (1000)
        #[argh(option, default = "1000")]
        connections: [u64],

        /// size of the WebSocket payload, the whole push object with an id of 19 digits; at least
        /// 64, of which 12 are the text of data (128)
        #[argh(option, default = "128")]
        bytes: [usize],

        /// messages in flight, 1 to 32 (1)
        #[argh(option, default = "1")]
        outstanding: [usize],

        /// seconds to push, after the warm-up (10)
        #[argh(option, default = "10.0")]
        seconds: [f64],

        /// seconds to push before anything is measured (0.5); losses count there too
        #[argh(option, default = "0.5")]
        warmup: [f64],

        /// end after this many messages, the warm-up's included
        #[argh(option)]
        messages: [Option<u32>],

        /// messages per second (each as soon as the last is complete); in intended_to_delivery_us a
        /// late message counts from its intended time
        #[argh(option)]
        rate: [Option<f64>],

        /// the tag of all connections, to which messages are pushed (load)
        #[argh(option, default = "\"load\".to_owned()")]
        tag: [String],

        /// push to the whole project instead of the tag
        #[argh(switch)]
        project: [bool],
    }
}

impl FanoutArguments {
    /// Returns the number of connections that several processes can share.
    pub fn shared(&self) -> Option<u64> {
        (!self.project).then_some(self.connections)
    }

    /// Checks the options and runs the command.
    pub fn run(&self, options: &Options) -> Result<Report, String> {
        if !(1..=MAX_OUTSTANDING).contains(&self.outstanding) {
            return Err(format!("--outstanding must be 1 to {MAX_OUTSTANDING}"));
        }
        check_rate(self.rate)?;
        let part = Part::of_this_process();
        let tag = (!self.project).then(|| match part.is_child() {
            // Each process pushes to its own connections.
            true => format!("{}-{}", self.tag, part.index),
            false => self.tag.clone(),
        });
        let mut common = options.check(self.connections, tag.as_deref().unwrap_or(""))?;
        nanoseconds("--seconds", self.seconds)?;
        nanoseconds("--warmup", self.warmup)?;
        common.needs_http = true;
        let settings = Fanout {
            bytes: self.bytes,
            outstanding: self.outstanding,
            seconds: self.seconds,
            warmup_seconds: self.warmup,
            messages: self.messages,
            rate: self.rate,
            tag,
        };
        run(&common, &settings)
    }
}

/// The settings of `fanout` besides the common ones.
pub struct Fanout {
    pub bytes: usize,
    /// At most [`MAX_OUTSTANDING`].
    pub outstanding: usize,
    pub seconds: f64,
    pub warmup_seconds: f64,
    /// Messages per second; `None`: the next one once one is complete.
    pub rate: Option<f64>,
    /// End after this many messages.
    pub messages: Option<u32>,
    /// The tag to push to; `None`: the whole project.
    pub tag: Option<String>,
}

impl Fanout {
    /// Returns when message `seq` should have been sent, if a rate is given.
    fn intended_ns(&self, began_ns: u64, seq: u32) -> Option<u64> {
        Some(began_ns + (f64::from(seq) * 1e9 / self.rate?) as u64)
    }
}

pub const MAX_OUTSTANDING: usize = 32;

/// More slots than messages in flight, so that a late thread never finds its slot's next message.
const SLOTS: usize = 2 * MAX_OUTSTANDING;

const HTTP: u64 = 1 << 32;
const WAKE: u64 = 2 << 32;

struct Shared {
    start: Start,
    waker: Waker,
    /// seq << 32 | number of threads that do not have it on all connections.
    slots: [AtomicU64; SLOTS],
    /// When the message in each slot was sent.
    sent_ns: [AtomicU64; SLOTS],
    /// Deliveries of the message in each slot.
    delivered: [AtomicU64; SLOTS],
    /// Threads with open connections.
    active: AtomicU64,
    /// When the first message was due; 0 until known.
    began_ns: AtomicU64,
    /// Messages sent from here on are measured; u64::MAX until known.
    measure_from_ns: AtomicU64,
    over: AtomicBool,
}

/// What a thread has received.
struct Receiver<'a> {
    shared: &'a Shared,
    live: &'static ThreadLive,
    finder: Finder,
    /// Open connections of this thread.
    open: u32,
    /// Per message: deliveries so far, and those of the current batch.
    counts: Vec<Count>,
    /// The messages of this batch, and when they were sent.
    touched: Vec<(u32, u64)>,
    latency: Histogram<u64>,
    deliveries: u64,
    measured: u64,
    last_ns: u64,
    duplicates: u64,
    out_of_order: u64,
    foreign: u64,
    payload_len: usize,
    is_pusher: bool,
    /// Number of HTTP connections that push in turn.
    pushers: u32,
    /// With a rate: latency from when a message was due.
    intended_latency: Histogram<u64>,
}

#[derive(Clone, Copy, Default)]
struct Count {
    all: u32,
    batch: u32,
}

impl Handler for Receiver<'_> {
    #[inline]
    fn frame(&mut self, _: u32, marks: &mut Marks, payload: &[u8]) {
        let Some((found, seq)) =
            self.finder.find(payload).and_then(|found| Some((found, found.seq()?)))
        else {
            self.foreign += 1;
            return;
        };
        match marks.arrived(seq) {
            Arrival::InOrder => {}
            Arrival::OutOfOrder => {
                self.out_of_order += u64::from(marks.overtaken(seq, self.pushers));
            }
            Arrival::Duplicate | Arrival::Ancient => {
                self.duplicates += 1;
                return;
            }
        }
        let index = seq as usize;
        if index >= self.counts.len() {
            self.counts.resize((index + 1).next_power_of_two(), Count::default());
        }
        let count = &mut self.counts[index];
        if count.batch == 0 {
            let sent_ns = || self.shared.sent_ns[index % SLOTS].load(Ordering::Acquire);
            self.touched.push((seq, found.at_ns().unwrap_or_else(sent_ns)));
            self.payload_len = payload.len();
        }
        count.batch += 1;
    }

    fn ended(&mut self, _: u32) {
        self.open -= 1;
        if self.open == 0 {
            self.shared.active.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Receiver<'_> {
    /// Records the batch. All deliveries of a message in one batch have the same latency.
    fn end_batch(&mut self, now: u64, settings: &Fanout) {
        let measure_from_ns = self.shared.measure_from_ns.load(Ordering::Relaxed);
        let began_ns = self.shared.began_ns.load(Ordering::Acquire);
        for (seq, at_ns) in self.touched.drain(..) {
            let count = &mut self.counts[seq as usize];
            let batch = std::mem::take(&mut count.batch);
            count.all += batch;
            let slot = seq as usize % SLOTS;
            self.shared.delivered[slot].fetch_add(u64::from(batch), Ordering::Relaxed);
            self.deliveries += u64::from(batch);
            let from_ns = settings.intended_ns(began_ns, seq).unwrap_or(at_ns);
            self.live.latency.record_n(now.saturating_sub(from_ns), batch);
            if at_ns >= measure_from_ns {
                self.measured += u64::from(batch);
                self.last_ns = now;
                let took_ns = now.saturating_sub(at_ns);
                self.latency.saturating_record_n(took_ns, u64::from(batch));
                if let Some(intended_ns) = settings.intended_ns(began_ns, seq) {
                    let took_ns = now.saturating_sub(intended_ns);
                    self.intended_latency.saturating_record_n(took_ns, u64::from(batch));
                }
            }
            if count.all >= self.open && count.all - batch < self.open {
                self.shared.took_all(seq, self.is_pusher);
            }
        }
    }
}

impl Shared {
    /// Records that one thread has a message on all of its connections.
    fn took_all(&self, seq: u32, is_pusher: bool) {
        let slot = &self.slots[seq as usize % SLOTS];
        let take =
            |value: u64| (value >> 32 == u64::from(seq) && value as u32 > 0).then(|| value - 1);
        if let Ok(before) = slot.fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            && before as u32 == 1
            && !is_pusher
        {
            self.waker.wake();
        }
    }

    fn is_complete(&self, seq: u32) -> bool {
        self.slots[seq as usize % SLOTS].load(Ordering::Acquire) == u64::from(seq) << 32
    }
}

struct Outcome {
    clients: Clients,
    counts: Vec<Count>,
    latency: Histogram<u64>,
    intended_latency: Histogram<u64>,
    deliveries: u64,
    measured: u64,
    last_ns: u64,
    duplicates: u64,
    out_of_order: u64,
    foreign: u64,
    payload_len: usize,
    connected: u64,
    cpu: CpuTime,
    pushed: Option<Pushed>,
}

pub fn run(common: &Common, settings: &Fanout) -> Result<Report, String> {
    let shared = Shared {
        start: Start::new(common.threads),
        waker: Waker::new().map_err(|error| format!("eventfd: {error}"))?,
        slots: std::array::from_fn(|_| AtomicU64::new(u64::MAX)),
        sent_ns: std::array::from_fn(|_| AtomicU64::new(0)),
        delivered: std::array::from_fn(|_| AtomicU64::new(0)),
        active: AtomicU64::new(0),
        began_ns: AtomicU64::new(0),
        measure_from_ns: AtomicU64::new(u64::MAX),
        over: AtomicBool::new(false),
    };
    let run_number = run::run_number();
    let bar = common.bar(common.connections, "connect");
    let (mut pushing, mut last) = (false, (sys::now_ns(), 0));
    let watch = || {
        let work = common.live.sum(|thread| &thread.deliveries);
        if work == 0 {
            return bar.set_position(common.live.sum(|thread| &thread.welcomed));
        }
        if !pushing {
            pushing = true;
            bar.set_prefix("fanout");
            bar.set_length(((settings.seconds + settings.warmup_seconds) * 10.0) as u64);
            bar.reset();
        }
        let now = sys::now_ns();
        if now - last.0 > 500_000_000 {
            let rate = (work - last.1) as f64 * 1e9 / (now - last.0) as f64;
            bar.set_message(format!("{rate:.0} deliveries/s"));
            last = (now, work);
        }
        bar.set_position((bar.elapsed().as_secs_f64() * 10.0) as u64);
    };
    let body = |t, ready| thread(common, settings, t, run_number, &shared, ready);
    let outcomes = common.run_threads(body, watch)?;
    bar.finish_and_clear();
    summarize(common, settings, &shared, outcomes)
}

fn thread(
    common: &Common,
    settings: &Fanout,
    t: usize,
    run_number: u16,
    shared: &Shared,
    ready: Result<(), String>,
) -> Result<Outcome, String> {
    let live = common.live.of(t);
    let mut clients = common.clients(t, None);
    let opened = ready.and_then(|()| open(common, settings, t, run_number, shared, &mut clients));
    let (mut reactor, mut source) = shared.start.meet(opened)?;
    let mut receiver = Receiver {
        shared,
        live,
        finder: Finder::new(run_number, message::short_data_len(settings.bytes)),
        open: clients.open as u32,
        counts: Vec::new(),
        touched: Vec::with_capacity(SLOTS),
        latency: report::new_histogram(),
        deliveries: 0,
        measured: 0,
        last_ns: 0,
        duplicates: 0,
        out_of_order: 0,
        foreign: 0,
        payload_len: 0,
        is_pusher: source.is_some(),
        pushers: common.http.len() as u32,
        intended_latency: report::new_histogram(),
    };
    let connected = clients.open;
    let began_ns = sys::now_ns();
    let measure_from_ns = began_ns + (settings.warmup_seconds * 1e9) as u64;
    let mut wait_ns = IDLE_NS;
    if let Some(source) = &mut source {
        common.live.mark("pushes");
        source.start(began_ns, measure_from_ns);
        wait_ns = source.turn(began_ns, &reactor.epoll);
    }
    let mut cpu_began = None;
    let mut server_began = None;
    let mut over = false;
    while !over {
        let (ready, now) = reactor.wait(wait_ns)?;
        if cpu_began.is_none() && now >= measure_from_ns {
            cpu_began = Some(CpuTime::of_this_thread());
            server_began = common.server_pid.filter(|_| t == 0).map(server::cpu_ns);
        }
        for i in 0..ready {
            let (token, mask) = reactor.epoll.event(i);
            let buffer = &mut reactor.buffer;
            if token < HTTP {
                clients.on_event(token as usize, mask, now, buffer, &mut receiver);
            } else if token < WAKE
                && let Some(source) = &mut source
            {
                source.on_http((token - HTTP) as usize, mask, now, buffer, &reactor.epoll);
            }
        }
        receiver.end_batch(now, settings);
        live.show(&clients);
        live.deliveries.store(receiver.deliveries, Ordering::Relaxed);
        live.doubled.store(receiver.duplicates, Ordering::Relaxed);
        match &mut source {
            Some(source) => {
                wait_ns = source.turn(now, &reactor.epoll);
                over = source.is_done(now);
                shared.over.store(over, Ordering::Release);
            }
            None => over = shared.over.load(Ordering::Acquire),
        }
    }
    let cpu =
        cpu_began.map_or_else(CpuTime::default, |began| CpuTime::of_this_thread().since(began));
    let server_ns = common
        .server_pid
        .zip(server_began)
        .map(|(pid, began)| server::cpu_ns(pid).saturating_sub(began));
    let pushed = source.map(|source| Pushed { server_ns, ..source.done });
    clients.drop_all();
    Ok(Outcome {
        clients,
        counts: receiver.counts,
        latency: receiver.latency,
        intended_latency: receiver.intended_latency,
        deliveries: receiver.deliveries,
        measured: receiver.measured,
        last_ns: receiver.last_ns,
        duplicates: receiver.duplicates,
        out_of_order: receiver.out_of_order,
        foreign: receiver.foreign,
        payload_len: receiver.payload_len,
        connected,
        cpu,
        pushed,
    })
}

/// Opens everything that a thread needs before the start.
fn open<'a>(
    common: &Common,
    settings: &'a Fanout,
    t: usize,
    run_number: u16,
    shared: &'a Shared,
    clients: &mut Clients,
) -> Result<(Reactor, Option<Source<'a>>), String> {
    let mut reactor = Reactor::new()?;
    reactor.open_all(clients, common.share(common.connections, t), common.live.of(t))?;
    if clients.open > 0 {
        shared.active.fetch_add(1, Ordering::AcqRel);
    }
    if t != 0 {
        return Ok((reactor, None));
    }
    let watched = reactor.epoll.add(shared.waker.fd(), sys::READABLE, WAKE);
    watched.map_err(|error| format!("epoll: {error}"))?;
    let source = Source::new(common, settings, shared, run_number, &reactor.epoll)?;
    Ok((reactor, Some(source)))
}

fn summarize(
    common: &Common,
    settings: &Fanout,
    shared: &Shared,
    outcomes: Vec<Outcome>,
) -> Result<Report, String> {
    let mut report = common.report("fanout");
    let mut latency = report::new_histogram();
    let mut intended_latency = report::new_histogram();
    let mut failures = Failures::default();
    let (mut connected, mut deliveries, mut measured, mut last_ns) = (0, 0, 0, 0);
    let (mut duplicates, mut out_of_order, mut foreign, mut payload_len) = (0, 0, 0, 0);
    let (mut refused, mut dropped) = (0, 0);
    let mut per_message: Vec<u64> = Vec::new();
    let (mut cpus, mut pushed) = (Vec::new(), None);
    let mut targets = Targets::default();
    for outcome in outcomes {
        targets.add_clients(&outcome.clients);
        connected += outcome.connected;
        deliveries += outcome.deliveries;
        measured += outcome.measured;
        last_ns = last_ns.max(outcome.last_ns);
        duplicates += outcome.duplicates;
        out_of_order += outcome.out_of_order;
        foreign += outcome.foreign;
        payload_len = payload_len.max(outcome.payload_len);
        refused += outcome.clients.refused;
        dropped += outcome.clients.dropped;
        failures.merge(outcome.clients.failures);
        report::merge(&mut latency, &outcome.latency);
        report::merge(&mut intended_latency, &outcome.intended_latency);
        if per_message.len() < outcome.counts.len() {
            per_message.resize(outcome.counts.len(), 0);
        }
        for (sum, count) in per_message.iter_mut().zip(&outcome.counts) {
            *sum += u64::from(count.all);
        }
        cpus.push(outcome.cpu);
        pushed = outcome.pushed.or(pushed);
    }
    let pushed = pushed.ok_or("nothing was pushed")?;
    failures.merge(pushed.failures);
    targets.add_pushes(&pushed.pushes);
    let got = |seq: usize| per_message.get(seq).copied().unwrap_or(0);
    let accepted = pushed.accepted.iter().filter(|&&accepted| accepted).count();
    let lost: u64 = (0..pushed.accepted.len())
        .filter(|&seq| pushed.accepted[seq])
        .map(|seq| connected.saturating_sub(got(seq)))
        .sum();
    let elapsed_ns = last_ns.saturating_sub(shared.measure_from_ns.load(Ordering::Relaxed)).max(1);

    report.set("threads", common.threads);
    report.set("connections", connected);
    report.set("outstanding", settings.outstanding);
    if let Some(rate) = settings.rate {
        report.set_rounded("rate_wanted_per_s", rate);
    }
    report.set("payload_bytes", payload_len);
    report
        .set("payload_bytes_wanted", settings.bytes.max(FRAME_OVERHEAD + message::SHORT_STAMP_LEN));
    report.set("messages_pushed", pushed.accepted.len());
    report.set("messages_accepted", accepted);
    report.set("messages_complete_measured", pushed.completed_measured);
    report.set("deliveries", deliveries);
    report.set("deliveries_measured", measured);
    report.set_rounded("elapsed_s", elapsed_ns as f64 / 1e9);
    report.set_judged_rate("deliveries_per_s", measured as f64 * 1e9 / elapsed_ns as f64);
    report
        .set_rounded("messages_per_s", pushed.completed_measured as f64 * 1e9 / elapsed_ns as f64);
    match settings.rate {
        None => report.set_judged_latency("push_to_delivery_us", &latency),
        Some(_) => {
            report.set_histogram("push_to_delivery_us", &latency);
            report.set_judged_latency("intended_to_delivery_us", &intended_latency);
        }
    }
    report.set_histogram("http_us", &pushed.http_latency);
    report.set_lost("lost", lost);
    report.set_lost("duplicates", duplicates);
    report.set_fault("out_of_order", out_of_order);
    report.set_fault("messages_timed_out", pushed.incomplete);
    report.set("foreign_frames", foreign);
    report.set_fault("connections_failed", refused);
    report.set_fault("connections_ended_by_server", dropped);
    report.set_failures("http_not_200", &pushed.statuses);
    report.set_failures("failures", &failures);
    targets.report(common, &mut report);
    let messages = pushed.completed_measured;
    run::report_cpu(&mut report, "message", messages, elapsed_ns, &cpus, pushed.server_ns);
    let tool_us: u64 = cpus.iter().map(|cpu| cpu.total_us()).sum();
    report.set_rounded("tool_cpu_us_per_delivery", tool_us as f64 / measured.max(1) as f64);
    if let Some(server_ns) = pushed.server_ns {
        let us = server_ns as f64 / 1000.0;
        report.set_rounded("server_cpu_us_per_delivery", us / measured.max(1) as f64);
    }
    if deliveries == 0 {
        report.fail();
    }
    Ok(report)
}
