//! The report of a scenario: totals, and the figures of each phase under `phases`.

use serde_json::{Value, json};

use super::driver::{self, PushRecord, Record};
use super::ledger::Answer;
use super::receiver::Tally;
use super::shared::Shared;
use super::stats::{Checks, PhaseStats, Times};
use super::{Outcome, canaries, requesters};
use crate::report::{Failures, Report, rounded};
use crate::run;
use crate::sys::CpuTime;

/// The results of all threads.
struct Merged {
    stats: Vec<PhaseStats>,
    /// By number of a push to many: the time of its last delivery.
    last_ns: Vec<u64>,
    failures: Failures,
    closed_with_1001: u64,
    foreign: u64,
    cpus: Vec<CpuTime>,
    driver: driver::Outcome,
    canaries: Option<canaries::Outcome>,
    requesters: Option<requesters::Outcome>,
}

pub fn summarize(
    shared: &Shared<'_>,
    command: &str,
    outcomes: Vec<Outcome>,
) -> Result<Report, String> {
    let merged = merge(shared, outcomes)?;
    let mut report = shared.common.report(command);
    report.set("threads", shared.crew_threads);
    report.set("connections", shared.scenario.population.connections);
    let elapsed_ns = merged.driver.ended_ns - merged.driver.began_ns;
    report.set_rounded("elapsed_s", seconds(elapsed_ns));
    if let Some(why) = &merged.driver.ended_early {
        report.set("ended_early", why.as_str());
        report.fail();
    }
    let (mut checks, mut latency) = (Checks::default(), Latency::default());
    for (index, record) in merged.driver.phases.iter().enumerate() {
        let phase = phase_report(shared, &merged, index, record);
        report.set_phase(&shared.scenario.phases[index].name, phase);
        let stats = &merged.stats[index];
        checks.add(stats.checks);
        latency.unicast.merge(&stats.unicast);
        latency.push.merge(&stats.project);
        latency.push.merge(&stats.tagged);
        if let Some(canaries) = &merged.canaries {
            checks.add(canaries.phases[index].checks);
            latency.canary.merge(&canaries.phases[index].times);
        }
    }
    if let Some(requesters) = &merged.requesters {
        checks.add(requesters.checks);
    }
    report.set("deliveries", checks.deliveries);
    set_rate(&mut report, &merged);
    totals(&mut report, &merged, checks, &latency);
    let server = merged.driver.phases.iter().filter_map(|record| {
        Some(record.server_ended?.cpu_ns.saturating_sub(record.server_began?.cpu_ns))
    });
    let server_ns = shared.common.server_pid.map(|_| server.sum());
    let units = checks.deliveries;
    run::report_cpu(&mut report, "delivery", units, elapsed_ns, &merged.cpus, server_ns);
    Ok(report)
}

/// Sets the rate that a threshold judges: of reconnects if connections are cut and come back, else
/// of deliveries, both over the phases that have them.
fn set_rate(report: &mut Report, merged: &Merged) {
    let (mut back, mut back_ns, mut deliveries, mut delivery_ns) = (0, 0, 0, 0);
    for (stats, record) in merged.stats.iter().zip(&merged.driver.phases) {
        if stats.cut > 0 && stats.reopened > 0 {
            back += stats.reopened;
            back_ns += stats.last_welcome_ns.saturating_sub(record.began_ns);
        }
        if stats.checks.deliveries > 0 {
            deliveries += stats.checks.deliveries;
            delivery_ns += record.ended_ns - record.began_ns;
        }
    }
    if back > 0 {
        report.set_judged_rate("reconnects_per_s", back as f64 * 1e9 / back_ns.max(1) as f64);
    } else if deliveries > 0 {
        let per_s = deliveries as f64 * 1e9 / delivery_ns.max(1) as f64;
        report.set_judged_rate("deliveries_per_s", per_s);
    }
}

fn merge(shared: &Shared<'_>, outcomes: Vec<Outcome>) -> Result<Merged, String> {
    let mut stats: Vec<PhaseStats> = Vec::new();
    stats.resize_with(shared.scenario.phases.len(), PhaseStats::default);
    let mut last_ns: Vec<u64> = Vec::new();
    let (mut failures, mut cpus) = (Failures::default(), Vec::new());
    let (mut closed_with_1001, mut foreign) = (0, 0);
    let (mut driver, mut canaries, mut requesters) = (None, None, None);
    for outcome in outcomes {
        match outcome {
            Outcome::Crew(crew) => {
                stats.iter_mut().zip(&crew.stats).for_each(|(sum, one)| sum.merge(one));
                merge_last(&mut last_ns, &crew.tallies);
                failures.merge(crew.failures);
                closed_with_1001 += crew.closed_with_1001;
                foreign += crew.foreign;
                cpus.push(crew.cpu);
            }
            Outcome::Driver(outcome) => {
                cpus.push(outcome.cpu);
                driver = Some(*outcome);
            }
            Outcome::Canaries(outcome) => {
                cpus.push(outcome.cpu);
                canaries = Some(outcome);
            }
            Outcome::Requesters(outcome) => {
                cpus.push(outcome.cpu);
                requesters = Some(*outcome);
            }
        }
    }
    let driver = driver.ok_or("no thread led the run")?;
    Ok(Merged {
        stats,
        last_ns,
        failures,
        closed_with_1001,
        foreign,
        cpus,
        driver,
        canaries,
        requesters,
    })
}

fn merge_last(last_ns: &mut Vec<u64>, tallies: &[Tally]) {
    if last_ns.len() < tallies.len() {
        last_ns.resize(tallies.len(), 0);
    }
    for (last, tally) in last_ns.iter_mut().zip(tallies) {
        *last = (*last).max(tally.last_ns);
    }
}

/// The latencies over all phases, by kind.
#[derive(Default)]
struct Latency {
    canary: Times,
    unicast: Times,
    push: Times,
}

/// Sets the figures of the whole run. The latency that a threshold judges is that of canaries if
/// there are any, else of unicast pushes, else of pushes to many.
fn totals(report: &mut Report, merged: &Merged, checks: Checks, latency: &Latency) {
    let judged = [
        ("canary_us", &latency.canary),
        ("unicast_us", &latency.unicast),
        ("push_to_delivery_us", &latency.push),
    ];
    let mut is_judged = false;
    for (key, times) in judged {
        match times.get() {
            Some(times) if is_judged => report.set_histogram(key, times),
            Some(times) => {
                report.set_judged_latency(key, times);
                is_judged = true;
            }
            None => {}
        }
    }
    set_checks(report, checks);
    report.set("foreign_frames", merged.foreign);
    let mut failures = Failures::default();
    let mut statuses = Failures::default();
    let sources = [Some(&merged.failures), Some(&merged.driver.failures)];
    let others = [
        merged.canaries.as_ref().map(|canaries| &canaries.failures),
        merged.requesters.as_ref().map(|requesters| &requesters.failures),
    ];
    sources.into_iter().chain(others).flatten().for_each(|one| failures.add_all(one));
    statuses.add_all(&merged.driver.statuses);
    if let Some(canaries) = &merged.canaries {
        statuses.add_all(&canaries.statuses);
    }
    report.set_failures("http_not_200", &statuses);
    if let Some(requesters) = &merged.requesters {
        report.set_failures("requests_refused", &requesters.refusals);
    }
    report.set_failures("failures", &failures);
}

fn set_checks(report: &mut Report, checks: Checks) {
    report.set_lost("lost", checks.lost);
    report.set_lost("doubled", checks.doubled);
    report.set_lost("out_of_order", checks.out_of_order);
    report.set_lost("misdelivered", checks.misdelivered);
    report.set_lost("refused_but_delivered", checks.refused_but_delivered);
    report.set("undecided", checks.undecided);
}

fn phase_report(shared: &Shared<'_>, merged: &Merged, index: usize, record: &Record) -> Report {
    let phase = &shared.scenario.phases[index];
    let (traffic, stats) = (&phase.traffic, &merged.stats[index]);
    let mut report = Report::new("");
    let elapsed_ns = record.ended_ns - record.began_ns;
    report.set_rounded("duration_s", seconds(elapsed_ns));
    if record.unfinished {
        report.set("unfinished", true);
        report.fail();
    }
    set_connections(&mut report, shared, merged, index, record);
    set_pushes(&mut report, merged, index, record);
    set_times(&mut report, "project_us", &stats.project);
    set_times(&mut report, "tag_push_us", &stats.tagged);
    if record.unicasts > 0 {
        report.set("unicasts", record.unicasts);
        report.set("unicasts_accepted", record.unicasts_accepted);
        set_times(&mut report, "unicast_us", &stats.unicast);
    }
    set_times(&mut report, "http_us", &record.http);
    if record.not_accepted > 0 {
        report.set_fault("pushes_not_accepted", record.not_accepted);
    }
    let mut checks = stats.checks;
    if let Some(canaries) = merged.canaries.as_ref().filter(|_| phase.canaries.is_some()) {
        let canaries = &canaries.phases[index];
        report.set("canary_pushes", canaries.pushes);
        set_times(&mut report, "canary_us", &canaries.times);
        report.set("canary_lost", canaries.checks.lost);
        report.set("canary_doubled", canaries.checks.doubled);
        checks.add(canaries.checks);
    }
    if let Some(requesters) = merged.requesters.as_ref().filter(|_| traffic.requests_per_s > 0.0) {
        let requesters = &requesters.phases[index];
        report.set("requests", requesters.requests);
        report.set("requests_answered", requesters.answered);
        set_times(&mut report, "request_us", &requesters.times);
    }
    if traffic.any() || phase.canaries.is_some() || checks != Checks::default() {
        report.set("deliveries", checks.deliveries);
        let per_s = checks.deliveries as f64 * 1e9 / elapsed_ns.max(1) as f64;
        report.set_rounded("deliveries_per_s", per_s);
        // Judged once, with the totals.
        report.set("lost", checks.lost);
        report.set("doubled", checks.doubled);
        report.set("out_of_order", checks.out_of_order);
        report.set("misdelivered", checks.misdelivered);
        report.set("undecided", checks.undecided);
    }
    set_server(&mut report, record, elapsed_ns);
    report
}

fn set_connections(
    report: &mut Report,
    shared: &Shared<'_>,
    merged: &Merged,
    index: usize,
    record: &Record,
) {
    let phase = &shared.scenario.phases[index];
    let stats = &merged.stats[index];
    let per_s = |count: u64, from: u64, to: u64| count as f64 * 1e9 / (to - from).max(1) as f64;
    let last_ns = stats.last_welcome_ns.max(record.began_ns);
    if stats.opened > 0 {
        report.set("opened", stats.opened);
        report.set_rounded("connects_per_s", per_s(stats.opened, record.began_ns, last_ns));
    }
    set_times(report, "connect_to_welcome_us", &stats.connect);
    if phase.cut.is_some() {
        report.set("cut", stats.cut);
    }
    if phase.churn_per_s > 0.0 {
        report.set("churned", stats.churned);
    }
    if stats.reopened > 0 {
        report.set("reconnected", stats.reopened);
        report.set_rounded("reconnects_per_s", per_s(stats.reopened, record.began_ns, last_ns));
        set_times(report, "end_to_welcome_us", &stats.back);
    }
    if phase.cut.is_some() && phase.reconnect.is_some() && !record.unfinished {
        report.set_rounded("all_back_s", seconds(last_ns - record.began_ns));
    }
    report.set("open_at_end", record.open_at_end);
    match (phase.reconnect.is_some(), phase.drain) {
        (_, true) => {
            let done_ns = record.done_ns.unwrap_or(record.ended_ns);
            report.set_rounded("drain_s", seconds(done_ns - record.began_ns));
            report.set("closed_by_server", stats.dropped);
            report.set("closed_with_1001", merged.closed_with_1001);
        }
        // Such a client tries again until it is welcomed.
        (true, _) => {
            report.set("connects_refused", stats.refused);
            report.set_fault("ended_by_server", stats.dropped);
        }
        (false, _) if stats.refused + stats.dropped > 0 => {
            report.set_fault("connects_refused", stats.refused);
            report.set_fault("ended_by_server", stats.dropped);
        }
        _ => {}
    }
}

/// Sets the pushes to many of a phase, and their time from acceptance to the last delivery.
fn set_pushes(report: &mut Report, merged: &Merged, index: usize, record: &Record) {
    let of_phase = |push: &&PushRecord| usize::from(push.phase) == index;
    let pushes: Vec<(usize, &PushRecord)> =
        merged.driver.pushes.iter().enumerate().filter(|(_, push)| of_phase(push)).collect();
    if pushes.is_empty() {
        return;
    }
    let to_last_ns = |seq: usize, push: &PushRecord| {
        let last_ns = merged.last_ns.get(seq).copied().unwrap_or(0);
        last_ns.saturating_sub(push.answered_ns)
    };
    for (to_all, count, key) in [
        (true, "project_pushes", "accepted_to_last_delivery_us"),
        (false, "tag_pushes", "tag_push_accepted_to_last_delivery_us"),
    ] {
        let mut times = Times::default();
        let own = pushes.iter().filter(|(_, push)| push.to_all == to_all);
        let mut all = 0;
        for (seq, push) in own {
            all += 1;
            if push.answer == Some(Answer::Accepted) {
                times.record(to_last_ns(*seq, push));
            }
        }
        if all > 0 {
            report.set(count, all);
            set_times(report, key, &times);
        }
    }
    let alone: Vec<Value> = pushes
        .iter()
        .filter(|(_, push)| push.alone && push.answer == Some(Answer::Accepted))
        .map(|(seq, push)| json!(rounded(to_last_ns(*seq, push) as f64 / 1e6)))
        .collect();
    if !alone.is_empty() {
        report.set("accepted_to_last_delivery_ms_of_each", alone);
        let elapsed_ns = record.done_ns.unwrap_or(record.ended_ns) - record.began_ns;
        let deliveries = merged.stats[index].checks.deliveries;
        let per_s = deliveries as f64 * 1e9 / elapsed_ns.max(1) as f64;
        report.set_rounded("project_deliveries_per_s", per_s);
    }
}

/// Sets the server's CPU time and memory, if its process is known.
fn set_server(report: &mut Report, record: &Record, elapsed_ns: u64) {
    let (Some(began), Some(ended)) = (record.server_began, record.server_ended) else { return };
    let cpu_ns = ended.cpu_ns.saturating_sub(began.cpu_ns);
    report.set_rounded("server_cpu_s", seconds(cpu_ns));
    report.set_rounded("server_cpu_percent", cpu_ns as f64 * 100.0 / elapsed_ns.max(1) as f64);
    report.set("server_rss_bytes_at_start", began.rss);
    report.set("server_rss_bytes_at_end", ended.rss);
    if let Some(trend) = trend_per_hour(&record.memory) {
        report.set_rounded("server_rss_bytes_per_hour", trend);
    }
    if record.open_at_end > 0 {
        let open = record.open_at_end as f64;
        report.set_rounded("server_rss_bytes_per_connection", ended.rss as f64 / open);
        let us = cpu_ns as f64 / 1e3 / seconds(elapsed_ns).max(1e-9) / open;
        report.set_rounded("server_cpu_us_per_second_and_connection", us);
    }
}

/// Returns the growth rate of memory: the slope of a line through the second half of the samples,
/// after the initial growth. `None` if there are too few.
fn trend_per_hour(memory: &[(u64, u64)]) -> Option<f64> {
    let half = &memory[memory.len() / 2..];
    if half.len() < MIN_TREND_SAMPLES {
        return None;
    }
    let count = half.len() as f64;
    let hours = |ns: u64| ns as f64 / 3.6e12;
    let mean_x = half.iter().map(|(at_ns, _)| hours(*at_ns)).sum::<f64>() / count;
    let mean_y = half.iter().map(|(_, rss)| *rss as f64).sum::<f64>() / count;
    let (mut xy, mut xx) = (0.0, 0.0);
    for (at_ns, rss) in half {
        let x = hours(*at_ns) - mean_x;
        xy += x * (*rss as f64 - mean_y);
        xx += x * x;
    }
    Some(xy / xx.max(f64::MIN_POSITIVE))
}

const MIN_TREND_SAMPLES: usize = 5;

fn set_times(report: &mut Report, key: &str, times: &Times) {
    if let Some(times) = times.get() {
        report.set_histogram(key, times);
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_grows_is_a_trend_and_what_grew_once_is_none() {
        let minute = |i: u64| i * 60_000_000_000;
        let grows: Vec<_> = (0..60).map(|i| (minute(i), 1_000_000 + i * 1_000)).collect();
        let trend = trend_per_hour(&grows).unwrap();
        assert!((trend - 60_000.0).abs() < 1.0, "{trend}");
        let grew: Vec<_> = (0..60).map(|i| (minute(i), if i < 10 { i } else { 10 })).collect();
        assert!(trend_per_hour(&grew).unwrap().abs() < 1e-6);
        assert_eq!(trend_per_hour(&grows[..8]), None);
    }
}
