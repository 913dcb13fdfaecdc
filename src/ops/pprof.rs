//! Profiles, in the format of Go's `net/http/pprof`.
//!
//! The kernel takes a profile ([`crate::io::perf`]): it costs the workers no work. A thread that
//! lives as long as the profile reads the records and resolves addresses to names. It has a low
//! priority, so neither workers nor scrapes wait for it.

mod cmdline;
mod cpu;
mod flamegraph;
mod heap;
mod index;
mod kernel;
mod maps;
mod profile;
mod proto;
mod records;
mod source;
mod symbols;

use super::job::Job;
use super::reply::Reply;
use crate::io::shared::Shared;
use crate::io::sys;
use crate::types::NodeId;
use crate::wire::http::Head;
use crate::wire::params::Params;
use cpu::CpuError;
use profile::Profile;
use std::cell::RefCell;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Go's default.
const DEFAULT_SECONDS: u64 = 30;
const MAX_SECONDS: u64 = 300;
/// Seconds allowed for resolving names, in the `Retry-After` sent to others.
const NAMING_SECONDS: u64 = 2;

/// The output format of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProfileKind {
    Pprof,
    FlameGraph,
}

/// The profile being taken, if any: two at a time would measure each other's work.
#[derive(Debug, Default)]
pub struct Profiler(RefCell<Option<Running>>);

#[derive(Debug)]
struct Running {
    who: String,
    seconds: u64,
    since: Instant,
}

/// Answers a request to the profiling port; `connection` is the client's socket.
pub async fn answer(
    shared: &Arc<Shared>,
    profiler: &Profiler,
    head: &Head<'_>,
    connection: BorrowedFd<'_>,
) -> Reply {
    let node = shared.at_start.node;
    match head.path {
        "/" | "/debug/pprof" | "/debug/pprof/" => {
            index::page(head, shared.active().settings.ops_token.is_some())
        }
        "/debug/pprof/profile" => take(profiler, node, head, connection, ProfileKind::Pprof).await,
        "/debug/pprof/flamegraph" => {
            take(profiler, node, head, connection, ProfileKind::FlameGraph).await
        }
        "/debug/pprof/heap" => {
            let shared = Arc::clone(shared);
            let work = move |_: &AtomicBool| {
                sys::yield_to_others();
                heap::report(&shared)
            };
            match Job::start("pprof", work) {
                Ok(job) => job.result(connection).await.map_or_else(ended_early, text),
                Err(error) => no_thread(&error),
            }
        }
        "/debug/pprof/cmdline" => text(cmdline::show(args())),
        _ => Reply::text(404, index::list()),
    }
}

fn text(body: String) -> Reply {
    Reply::text(200, body).with("X-Content-Type-Options", "nosniff")
}

/// Returns the arguments of this process, including those that are not UTF-8.
fn args() -> impl Iterator<Item = String> {
    std::env::args_os().map(|arg| arg.to_string_lossy().into_owned())
}

fn no_thread(error: &io::Error) -> Reply {
    Reply::text(500, format!("cannot start a thread: {error}\n"))
}

fn ended_early() -> Reply {
    Reply::text(500, "its thread ended early: see the node's log\n")
}

/// Takes a profile and converts it to the requested format.
async fn take(
    profiler: &Profiler,
    node: NodeId,
    head: &Head<'_>,
    connection: BorrowedFd<'_>,
    kind: ProfileKind,
) -> Reply {
    let seconds = match seconds(head.query.unwrap_or("")) {
        Ok(seconds) => seconds,
        Err(problem) => return Reply::text(400, format!("{problem}\n")),
    };
    let who = sys::peer_address(connection).map_or("somebody".into(), |peer| peer.to_string());
    let place = profiler.enter(Running { who, seconds, since: Instant::now() });
    let _place = match place {
        Ok(place) => place,
        Err(refusal) => return refusal,
    };
    let length = Duration::from_secs(seconds);
    let work = move |is_cancelled: &AtomicBool| {
        sys::yield_to_others();
        let recording = cpu::record(length, is_cancelled)?;
        let profile = Profile::new(&recording);
        Ok(match kind {
            ProfileKind::Pprof => {
                proto::encode(&profile).map_err(|error| CpuError::System { what: "gzip", error })?
            }
            ProfileKind::FlameGraph => {
                flamegraph::draw(&profile, &format!("ws-cluster, node {node}")).into_bytes()
            }
        })
    };
    let job = match Job::start("pprof", work) {
        Ok(job) => job,
        Err(error) => return no_thread(&error),
    };
    match job.result(connection).await {
        Some(Ok(body)) => taken(kind, body),
        Some(Err(error @ CpuError::Refused(_))) => Reply::text(501, refused(&error)),
        Some(Err(error)) => Reply::text(500, format!("{error}\n")),
        None => ended_early(),
    }
}

fn taken(kind: ProfileKind, body: Vec<u8>) -> Reply {
    let reply = match kind {
        ProfileKind::Pprof => Reply::new(200, "application/octet-stream", body)
            .with("Content-Disposition", "attachment; filename=\"profile.pb.gz\""),
        ProfileKind::FlameGraph => Reply::new(200, "image/svg+xml", body),
    };
    reply.with("X-Content-Type-Options", "nosniff")
}

/// Returns what to allow if the kernel refuses.
fn refused(error: &CpuError) -> String {
    let paranoid = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid");
    let paranoid = paranoid.unwrap_or_else(|_| "unreadable".into());
    format!(
        "{error}: this node may not profile its own threads. To allow it, set:\n\
         - kernel.perf_event_paranoid to 2 or less (it is {}); 1 or less shows the kernel's part \
         as well\n\
         - or the capability CAP_PERFMON for the node, which is required above 2: systemd \
         AmbientCapabilities=CAP_PERFMON, docker --cap-add PERFMON, Kubernetes \
         capabilities.add: [PERFMON]\n\
         - and the seccomp filter to allow perf_event_open; the default filters of containers \
         allow it only with that capability\n\
         perf outside the container needs none of this: perf record -g -p PID\n",
        paranoid.trim()
    )
}

/// Parses `seconds` from a query.
fn seconds(query: &str) -> Result<u64, String> {
    let params = Params::parse(query.as_bytes()).map_err(|error| error.msg.to_string())?;
    let Some(text) = params.get("seconds") else { return Ok(DEFAULT_SECONDS) };
    // Go accepts neither a sign nor a fraction.
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = text.parse().ok().filter(|seconds| (1..=MAX_SECONDS).contains(seconds));
    seconds.filter(|_| is_number).ok_or_else(|| {
        format!(
            "seconds={text} is not a whole number from 1 to {MAX_SECONDS}: use e.g. seconds=10, or \
             omit it for {DEFAULT_SECONDS}"
        )
    })
}

impl Profiler {
    /// Takes the only slot, or refuses.
    fn enter(&self, running: Running) -> Result<ProfilerPlace<'_>, Reply> {
        if let Some(other) = &*self.0.borrow() {
            let began = other.since.elapsed().as_secs();
            let left = (other.seconds + NAMING_SECONDS).saturating_sub(began).max(1);
            let text = format!(
                "{} started a profile of {} s {began} s ago, and only one can run at a time: try \
                 again in {left} s\n",
                other.who, other.seconds
            );
            return Err(Reply::text(503, text).with("Retry-After", left.to_string()));
        }
        *self.0.borrow_mut() = Some(running);
        Ok(ProfilerPlace(self))
    }
}

/// The only slot; free again when this is dropped.
struct ProfilerPlace<'a>(&'a Profiler);

impl Drop for ProfilerPlace<'_> {
    fn drop(&mut self) {
        self.0.0.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_whole_and_within_limits() {
        for (query, expected) in [
            ("", Some(30)),
            ("debug=1", Some(30)),
            ("seconds=1", Some(1)),
            ("token=x&seconds=300", Some(300)),
            ("seconds=0", None),
            ("seconds=301", None),
            ("seconds=", None),
            ("seconds=+5", None),
            ("seconds=%2B5", None),
            ("seconds=1.5", None),
            ("seconds=-1", None),
            ("seconds=99999999999999999999", None),
            ("seconds=1&seconds=2", None),
            ("seconds=%", None),
        ] {
            assert_eq!(seconds(query).ok(), expected, "{query}");
        }
        assert!(
            seconds("seconds=ten").unwrap_err().starts_with("seconds=ten is not a whole number")
        );
    }

    #[test]
    fn there_is_one_place() {
        let profiler = Profiler::default();
        let running = |who: &str| Running { who: who.into(), seconds: 20, since: Instant::now() };
        let place = profiler.enter(running("1.2.3.4:5")).ok().unwrap();
        let refusal = profiler.enter(running("other")).err().unwrap();
        assert_eq!(refusal.status, 503);
        let text = String::from_utf8(refusal.body).unwrap();
        assert!(text.contains("1.2.3.4:5 started a profile of 20 s 0 s ago"), "{text}");
        assert_eq!(refusal.fields, [("Retry-After", "22".to_string())]);
        drop(place);
        assert!(profiler.enter(running("other")).is_ok());
    }

    #[test]
    fn a_refusal_says_what_to_allow() {
        let text = refused(&CpuError::Refused(io::Error::from_raw_os_error(1)));
        for word in ["CAP_PERFMON", "perf_event_paranoid", "seccomp", "perf record"] {
            assert!(text.contains(word), "{text}");
        }
    }
}
