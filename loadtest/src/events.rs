//! `loadtest events`: clients connect in a storm and disconnect, and business servers receive an
//! event for each.
//!
//! The business servers run on the first thread. All of them have their welcome before the first
//! client connects, so each must receive one `connect` and one `disconnect` of every client.
//!
//! Everything read in one turn of the loop gets the same time. A turn takes a millisecond or more
//! in a storm, microseconds with --connect-rate: use that to measure the time from welcome to
//! event.

use std::sync::atomic::Ordering;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::arguments::{self, Options, subcommand};
use crate::business::{Business, TOKENS};
use crate::client::{Clients, Handler, IDLE_NS};
use crate::identity::{self, Identity};
use crate::message::{Marks, Member};
use crate::report::{self, Failures, Report};
use crate::run::{self, Common, Reactor, Start, Targets};
use crate::series::ThreadLive;
use crate::server;
use crate::sys::{self, CpuTime};

subcommand! {
    /// Opens clients in a storm while business servers listen for connect and disconnect, then
    /// closes all of them. Every server must receive each client's connect event once, and then its
    /// disconnect event once, or the run fails. welcome_to_event_us is exact with --connect-rate;
    /// in a storm both are often read at once, which gives 0. --max-p99 judges welcome_to_event_us,
    /// --min-rate connects_per_s, --max-loss events.
    #[argh(subcommand, name = "events")]
    pub struct EventsArguments {
        /// number of clients (1000)
        #[argh(option, default = "1000")]
        connections: [u64],

        /// number of business servers, one connection each; all have their welcome before the first
        /// client connects (1)
        #[argh(option, default = "1")]
        servers: [u64],

        /// the nodes that they connect to in turn, host:port, separated by commas (as --ws)
        #[argh(option)]
        server_ws: [Option<String>],

        /// tags sent at connect, separated by commas (none)
        #[argh(option, default = "String::new()")]
        tags: [String],
    }
}

impl EventsArguments {
    /// Checks the options and runs the command.
    pub fn run(&self, options: &Options) -> Result<Report, String> {
        let common = options.check(self.connections, &self.tags)?;
        let ws = self.server_ws.as_deref().unwrap_or(&options.ws);
        run(&common, &arguments::business(self.servers, ws, "connect,disconnect")?)
    }
}

/// Connections closed before arrivals are read again.
const CLOSE_AT_ONCE: usize = 32;
/// How long to wait for duplicate events.
const SETTLE_NS: u64 = 100_000_000;

/// A client's welcome: the client id in it, and its time; 0 for none.
#[derive(Clone, Copy, Default)]
struct Welcome {
    cid: u64,
    at_ns: u64,
}

/// The clients' side of one thread.
struct Welcomes {
    client_id: Member,
    /// By the client's number in this thread.
    of: Vec<Welcome>,
    /// The time of the current batch.
    now: u64,
    last_ns: u64,
    foreign_frames: u64,
}

impl Handler for Welcomes {
    fn frame(&mut self, _: u32, _: &mut Marks, _: &[u8]) {
        self.foreign_frames += 1;
    }

    fn welcomed(&mut self, number: u32, payload: &[u8]) {
        let cid = client_id(&mut self.client_id, payload).unwrap_or(0);
        self.of[number as usize] = Welcome { cid, at_ns: self.now };
        self.last_ns = self.now;
    }
}

/// What one server has received about one client.
#[derive(Clone, Copy, Default)]
struct Client {
    cid: u64,
    /// When its `connect` arrived.
    at_ns: u64,
    connected: bool,
    disconnected: bool,
}

/// What one server has received.
#[derive(Clone, Default)]
struct Heard {
    /// By the client's number over all threads.
    clients: Vec<Client>,
    /// Clients whose event it has received, and the time of the last one.
    connects: u64,
    connected_ns: u64,
    disconnects: u64,
    disconnected_ns: u64,
    duplicates: u64,
    out_of_order: u64,
    /// A `disconnect` with another client id than that user's `connect`.
    misattributed: u64,
    foreign: u64,
}

/// The servers' side.
struct Listener<'a> {
    identity: &'a Identity,
    first_user: u64,
    kind: Member,
    client_id: Member,
    uid: Member,
    servers: Vec<Heard>,
    now: u64,
}

impl Handler for Listener<'_> {
    #[inline]
    fn frame(&mut self, number: u32, _: &mut Marks, payload: &[u8]) {
        let heard = &mut self.servers[number as usize];
        let user = self.uid.text(payload).and_then(|uid| self.identity.user_of(uid));
        let place = user.and_then(|user| user.checked_sub(self.first_user));
        let client = place.and_then(|place| heard.clients.get_mut(place as usize));
        let (Some(client), Some(cid), Some(kind)) =
            (client, client_id(&mut self.client_id, payload), self.kind.text(payload))
        else {
            heard.foreign += 1;
            return;
        };
        match kind {
            b"connect" if client.connected => heard.duplicates += 1,
            b"connect" => {
                heard.out_of_order += u64::from(client.disconnected);
                *client = Client { cid, at_ns: self.now, connected: true, ..*client };
                heard.connects += 1;
                heard.connected_ns = self.now;
            }
            b"disconnect" if client.disconnected => heard.duplicates += 1,
            b"disconnect" => {
                heard.misattributed += u64::from(client.connected && client.cid != cid);
                client.disconnected = true;
                heard.disconnects += 1;
                heard.disconnected_ns = self.now;
            }
            _ => heard.foreign += 1,
        }
    }
}

/// Returns the client id in a welcome or an event, in quotes or not.
fn client_id(member: &mut Member, payload: &[u8]) -> Option<u64> {
    let rest = member.rest(payload)?;
    let rest = rest.strip_prefix(b"\"").unwrap_or(rest);
    let end = rest.iter().position(|byte| !byte.is_ascii_digit())?;
    identity::decimal(&rest[..end])
}

fn client_id_member() -> Member {
    Member::new(r#""client_id":"#)
}

/// One thread's connections, including the servers' on the first thread.
struct Sides<'a> {
    common: &'a Common,
    live: &'static ThreadLive,
    reactor: Reactor,
    clients: Clients,
    /// Clients that belong to this thread.
    count: u64,
    welcomes: Welcomes,
    servers: Option<Clients>,
    /// Reads used by the servers' own welcomes.
    reads_before: u64,
    listener: Listener<'a>,
    storm_ns: u64,
    closing_ns: u64,
    over_ns: u64,
}

struct Outcome {
    clients: Clients,
    welcomes: Welcomes,
    servers: Option<Clients>,
    reads: u64,
    heard: Vec<Heard>,
    /// When the storm began, when the closing began, and when that ended.
    times: [u64; 3],
    cpu: CpuTime,
    server_ns: Option<u64>,
}

pub fn run(common: &Common, business: &Business) -> Result<Report, String> {
    let live = common.live;
    let start = Start::new(common.threads);
    let bar = common.bar(common.connections, "events");
    let watch = || {
        bar.set_position(live.sum(|thread| &thread.welcomed));
        bar.set_message(format!("{} events", live.sum(|thread| &thread.deliveries)));
    };
    let body = |t, ready: Result<(), String>| {
        let opened = ready.and_then(|()| open(common, business, t));
        let mut sides = start.meet(opened)?;
        let began = CpuTime::of_this_thread();
        let server_pid = common.server_pid.filter(|_| t == 0);
        let server_began = server_pid.map(server::cpu_ns);
        let stormed = sides.storm();
        start.meet(stormed)?;
        sides.close()?;
        let cpu = CpuTime::of_this_thread().since(began);
        let server_ns = server_pid
            .map(server::cpu_ns)
            .zip(server_began)
            .map(|(ns, was)| ns.saturating_sub(was));
        sides.settle()?;
        Ok(sides.into_outcome(cpu, server_ns))
    };
    let outcomes = common.run_threads(body, watch)?;
    bar.finish_and_clear();
    Ok(summarize(common, business, outcomes))
}

/// Opens everything that a thread needs before the storm.
fn open<'a>(common: &'a Common, business: &Business, t: usize) -> Result<Sides<'a>, String> {
    let mut reactor = Reactor::new()?;
    let servers = match t {
        0 => Some(business.open(common, &mut reactor)?),
        _ => None,
    };
    let count = common.share(common.connections, t);
    let places = (common.first_user_of(common.threads) - common.first_user) as usize;
    let heard = Heard { clients: vec![Client::default(); places], ..Heard::default() };
    let listener = Listener {
        identity: &common.identity,
        first_user: common.first_user,
        kind: Member::new(r#""type":""#),
        client_id: client_id_member(),
        uid: Member::new(r#""uid":""#),
        servers: vec![heard; servers.as_ref().map_or(0, |_| business.servers as usize)],
        now: 0,
    };
    let welcomes = Welcomes {
        client_id: client_id_member(),
        of: vec![Welcome::default(); count as usize],
        now: 0,
        last_ns: 0,
        foreign_frames: 0,
    };
    Ok(Sides {
        common,
        live: common.live.of(t),
        reactor,
        clients: common.clients(t, None),
        count,
        welcomes,
        reads_before: servers.as_ref().map_or(0, |servers| servers.reads),
        servers,
        listener,
        storm_ns: 0,
        closing_ns: 0,
        over_ns: 0,
    })
}

impl Sides<'_> {
    /// Waits, then handles what has arrived.
    fn step(&mut self, wait_ns: u64) -> Result<u64, String> {
        let (ready, now) = self.reactor.wait(wait_ns)?;
        self.welcomes.now = now;
        self.listener.now = now;
        for i in 0..ready {
            let (token, mask) = self.reactor.epoll.event(i);
            let buffer = &mut self.reactor.buffer;
            if token < TOKENS {
                self.clients.on_event(token as usize, mask, now, buffer, &mut self.welcomes);
            } else if let Some(servers) = &mut self.servers {
                let index = (token - TOKENS) as usize;
                servers.on_event(index, mask, now, buffer, &mut self.listener);
            }
        }
        self.live.show(&self.clients);
        let events = self.listener.servers.iter().map(|heard| heard.connects + heard.disconnects);
        self.live.deliveries.store(events.sum(), Ordering::Relaxed);
        Ok(now)
    }

    /// Opens all clients, and returns once every server has received each `connect`.
    fn storm(&mut self) -> Result<(), String> {
        self.storm_ns = sys::now_ns();
        let mut patience = Patience::new(self);
        loop {
            let more_ns = self.clients.open_more(&self.reactor.epoll, self.count, sys::now_ns());
            let now = self.step(more_ns.min(IDLE_NS))?;
            let is_whole = self.clients.settled(self.count)
                && (self.servers.is_none() || self.have_all(|heard| heard.connects));
            if is_whole || patience.is_over(self, now) {
                return Ok(());
            }
        }
    }

    /// Closes all clients, and returns once every server has received each `disconnect`.
    fn close(&mut self) -> Result<(), String> {
        self.closing_ns = sys::now_ns();
        if self.servers.is_some() {
            self.common.live.mark("close");
        }
        let mut patience = Patience::new(self);
        loop {
            let now = sys::now_ns();
            self.clients.close_more(CLOSE_AT_ONCE, now);
            // Ends connections whose Close is not answered; opens none any more.
            self.clients.open_more(&self.reactor.epoll, self.count, now);
            let wait_ns = if self.clients.open > 0 { 0 } else { IDLE_NS };
            self.over_ns = self.step(wait_ns)?;
            let is_whole = self.clients.open == 0
                && (self.servers.is_none() || self.have_all(|heard| heard.disconnects))
                && self.clients.all_gone();
            if is_whole || patience.is_over(self, self.over_ns) {
                return Ok(());
            }
        }
    }

    /// Reads whatever arrives although nothing should.
    fn settle(&mut self) -> Result<(), String> {
        let end_ns = sys::now_ns() + SETTLE_NS;
        while self.step(IDLE_NS)? < end_ns {}
        Ok(())
    }

    fn into_outcome(mut self, cpu: CpuTime, server_ns: Option<u64>) -> Outcome {
        self.clients.drop_all();
        let reads = self.servers.as_ref().map_or(0, |servers| servers.reads - self.reads_before);
        if let Some(servers) = &mut self.servers {
            servers.drop_all();
        }
        Outcome {
            clients: self.clients,
            welcomes: self.welcomes,
            servers: self.servers,
            reads,
            heard: self.listener.servers,
            times: [self.storm_ns, self.closing_ns, self.over_ns],
            cpu,
            server_ns,
        }
    }

    /// Returns whether each server has an event of every welcomed client, of all threads.
    fn have_all(&self, events: impl Fn(&Heard) -> u64) -> bool {
        let decided = self.common.live.decided();
        let welcomed = self.common.live.sum(|thread| &thread.welcomed);
        decided >= self.common.connections
            && self.listener.servers.iter().all(|heard| events(heard) >= welcomed)
    }
}

/// Waits as long as there is progress, and for --timeout after it.
struct Patience {
    /// Clients decided and clients open over all threads, and events of all servers.
    progress: [u64; 3],
    since_ns: u64,
}

impl Patience {
    fn new(sides: &Sides<'_>) -> Patience {
        Patience { progress: Patience::progress(sides), since_ns: sys::now_ns() }
    }

    fn progress(sides: &Sides<'_>) -> [u64; 3] {
        let live = sides.common.live;
        [live.decided(), live.sum(|t| &t.open), live.sum(|t| &t.deliveries)]
    }

    fn is_over(&mut self, sides: &Sides<'_>, now: u64) -> bool {
        let progress = Patience::progress(sides);
        if progress != self.progress {
            (self.progress, self.since_ns) = (progress, now);
        }
        sys::interrupted() || now.saturating_sub(self.since_ns) > sides.common.timeout_ns
    }
}

/// Result of comparing the servers' events with the clients' welcomes.
struct Compared {
    lost_connects: u64,
    lost_disconnects: u64,
    misattributed: u64,
    /// Events that arrived before the welcome.
    before: u64,
    latency: Histogram<u64>,
}

fn compare(heard: &Heard, welcomes: &[Welcome]) -> Compared {
    let mut compared = Compared {
        lost_connects: 0,
        lost_disconnects: 0,
        misattributed: heard.misattributed,
        before: 0,
        latency: report::new_histogram(),
    };
    for (client, welcome) in heard.clients.iter().zip(welcomes) {
        if welcome.at_ns == 0 {
            continue;
        }
        compared.lost_disconnects += u64::from(!client.disconnected);
        if !client.connected {
            compared.lost_connects += 1;
            continue;
        }
        compared.misattributed += u64::from(client.cid != welcome.cid);
        compared.before += u64::from(client.at_ns < welcome.at_ns);
        report::record(&mut compared.latency, client.at_ns.saturating_sub(welcome.at_ns));
    }
    compared
}

fn summarize(common: &Common, business: &Business, outcomes: Vec<Outcome>) -> Report {
    let mut failures = Failures::default();
    let (mut welcomed, mut refused, mut dropped, mut foreign_frames) = (0, 0, 0, 0);
    let (mut storm_ns, mut welcomed_ns, mut closing_ns, mut over_ns) = (u64::MAX, 0, u64::MAX, 0);
    let places = (common.first_user_of(common.threads) - common.first_user) as usize;
    let mut welcomes = vec![Welcome::default(); places];
    let mut connect_latency = report::new_histogram();
    let (mut servers, mut reads) = (Vec::new(), 0);
    let (mut cpus, mut server_ns) = (Vec::new(), None);
    let mut targets = Targets::default();
    for outcome in outcomes {
        targets.add_clients(&outcome.clients);
        let Outcome { clients, welcomes: of_thread, times: [storm, closing, over], .. } = outcome;
        let first = (clients.first_user - common.first_user) as usize;
        welcomes[first..first + of_thread.of.len()].copy_from_slice(&of_thread.of);
        welcomed += clients.welcomed;
        refused += clients.refused;
        dropped += clients.dropped;
        foreign_frames += of_thread.foreign_frames;
        storm_ns = storm_ns.min(storm);
        welcomed_ns = welcomed_ns.max(of_thread.last_ns);
        closing_ns = closing_ns.min(closing);
        over_ns = over_ns.max(over);
        report::merge(&mut connect_latency, &clients.latency);
        failures.merge(clients.failures);
        if let Some(connections) = outcome.servers {
            dropped += connections.dropped;
            failures.merge(connections.failures);
            reads = outcome.reads;
            servers = outcome.heard;
        }
        cpus.push(outcome.cpu);
        server_ns = server_ns.or(outcome.server_ns);
    }
    let per_s = |count: u64, ns: u64| count as f64 * 1e9 / ns.max(1) as f64;
    let compared: Vec<_> = servers.iter().map(|heard| compare(heard, &welcomes)).collect();
    let sum = |field: fn(&Heard) -> u64| servers.iter().map(field).sum::<u64>();
    let sum_of = |field: fn(&Compared) -> u64| compared.iter().map(field).sum::<u64>();
    let events = sum(|heard| heard.connects + heard.disconnects);
    let mut latency = report::new_histogram();
    for one in &compared {
        report::merge(&mut latency, &one.latency);
    }
    let table: Vec<Value> = servers
        .iter()
        .zip(&compared)
        .map(|(heard, compared)| {
            let storm = heard.connected_ns.saturating_sub(storm_ns);
            let close = heard.disconnected_ns.saturating_sub(closing_ns);
            json!({
                "connects": heard.connects,
                "disconnects": heard.disconnects,
                "events_per_s": report::rounded(per_s(
                    heard.connects + heard.disconnects,
                    storm + close,
                )),
                "connects_per_s": report::rounded(per_s(heard.connects, storm)),
                "disconnects_per_s": report::rounded(per_s(heard.disconnects, close)),
                "welcome_to_event_p50_us": report::quantile_us(&compared.latency, 0.5),
                "welcome_to_event_p99_us": report::quantile_us(&compared.latency, 0.99),
            })
        })
        .collect();

    let mut report = common.report("events");
    report.set("threads", common.threads);
    report.set("concurrency", common.concurrency);
    report.set("servers", business.servers);
    report.set("connections_welcomed", welcomed);
    report.set_judged_rate("connects_per_s", per_s(welcomed, welcomed_ns.saturating_sub(storm_ns)));
    report.set_histogram("connect_to_welcome_us", &connect_latency);
    report.set_judged_latency("welcome_to_event_us", &latency);
    report.set("events_before_welcome", sum_of(|compared| compared.before));
    report.set("events", events);
    report.set("server_reads", reads);
    report.set_rounded("events_per_read", events as f64 / reads.max(1) as f64);
    report.set("of_each_server", table);
    report.set_lost("lost_connects", sum_of(|compared| compared.lost_connects));
    report.set_lost("lost_disconnects", sum_of(|compared| compared.lost_disconnects));
    report.set_lost("duplicates", sum(|heard| heard.duplicates));
    report.set_fault("out_of_order", sum(|heard| heard.out_of_order));
    report.set_fault("misattributed", sum_of(|compared| compared.misattributed));
    report.set("foreign_events", sum(|heard| heard.foreign));
    report.set("foreign_frames", foreign_frames);
    report.set_fault("connections_failed", refused);
    report.set_fault("connections_ended_by_server", dropped);
    report.set_failures("failures", &failures);
    let elapsed_ns = over_ns.saturating_sub(storm_ns);
    targets.report(common, &mut report);
    run::report_cpu(&mut report, "event", events, elapsed_ns, &cpus, server_ns);
    if events == 0 {
        report.fail();
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::identity;

    fn event(kind: &str, cid: u64, user: u64) -> String {
        format!(r#"{{"type":"{kind}","client_id":"{cid}","uid":"u {user}","node":1,"ts":1}}"#)
    }

    fn heard(events: &[(&str, u64, u64)]) -> Heard {
        let identity = identity();
        let clients = vec![Client::default(); 2];
        let mut listener = Listener {
            identity: &identity,
            first_user: 10,
            kind: Member::new(r#""type":""#),
            client_id: client_id_member(),
            uid: Member::new(r#""uid":""#),
            servers: vec![Heard { clients, ..Heard::default() }],
            now: 0,
        };
        for &(kind, cid, user) in events {
            listener.now += 1_000;
            listener.frame(0, &mut Marks::default(), event(kind, cid, user).as_bytes());
        }
        listener.servers.remove(0)
    }

    const WELCOMES: [Welcome; 2] =
        [Welcome { cid: 5, at_ns: 1_500 }, Welcome { cid: 6, at_ns: 1_500 }];

    #[test]
    fn every_client_comes_once_and_goes_once() {
        let heard = heard(&[
            ("connect", 5, 10),
            ("connect", 6, 11),
            ("disconnect", 6, 11),
            ("disconnect", 5, 10),
        ]);
        assert_eq!((heard.connects, heard.disconnects), (2, 2));
        assert_eq!((heard.duplicates, heard.out_of_order, heard.foreign), (0, 0, 0));
        let compared = compare(&heard, &WELCOMES);
        assert_eq!((compared.lost_connects, compared.lost_disconnects), (0, 0));
        assert_eq!((compared.misattributed, compared.before), (0, 1));
        assert_eq!((compared.latency.len(), compared.latency.max()), (2, 500));
    }

    #[test]
    fn what_is_lost_doubled_or_early_is_seen() {
        let lost = compare(&heard(&[("disconnect", 5, 10), ("connect", 6, 11)]), &WELCOMES);
        assert_eq!((lost.lost_connects, lost.lost_disconnects), (1, 1));
        let early = heard(&[("disconnect", 5, 10), ("connect", 5, 10)]);
        assert_eq!((early.out_of_order, early.duplicates), (1, 0));
        let twice = heard(&[
            ("connect", 5, 10),
            ("connect", 5, 10),
            ("disconnect", 5, 10),
            ("disconnect", 5, 10),
        ]);
        assert_eq!((twice.connects, twice.disconnects, twice.duplicates), (1, 1, 2));
        let wrong = heard(&[("connect", 6, 10), ("connect", 6, 11), ("disconnect", 5, 11)]);
        assert_eq!(compare(&wrong, &WELCOMES).misattributed, 2);
        let foreign = heard(&[("connect", 7, 12), ("connect", 7, 9), ("subscribe", 5, 10)]);
        assert_eq!((foreign.foreign, foreign.connects), (3, 0));
    }

    #[test]
    fn a_client_id_with_and_without_quotes() {
        let mut member = client_id_member();
        assert_eq!(client_id(&mut member, br#"{"client_id":"17"}"#), Some(17));
        assert_eq!(client_id(&mut member, br#"{"client_id":17,"uid":"u"}"#), Some(17));
        assert_eq!(client_id(&mut member, br#"{"client_id":null}"#), None);
    }
}
