//! The tasks of a worker: one drives its WebSocket server, one receives from the other workers, one
//! ticks.

use super::clock;
use super::http_accept;
use super::lane::Bell;
use super::pauses;
use super::server_pushes;
use super::sync::{EventFd, duplicate, look_at_ring, yield_now};
use super::worker_context::WorkerContext;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// Messages taken from the mailbox before other tasks run, and the time after which they run
/// anyway: one may be a push to a very large audience.
const MESSAGES_PER_TURN: usize = 256;
const RECEIVING: Duration = Duration::from_micros(300);
/// Messages between two clock readings.
const MESSAGES_PER_LOOK: usize = 8;
/// After a turn of this length, other tasks run before anything is sent.
const LONG_TURN: Duration = Duration::from_micros(500);

/// Why a worker could not start or continue.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The kernel accepts nothing from the ring any more.
    #[error("{0}")]
    Ring(io::Error),
}

/// Runs a worker until the node has drained. Must be called on the worker's own thread, after it
/// has its own file-descriptor table.
pub async fn run(context: Rc<WorkerContext>) -> Result<(), TaskError> {
    look_at_ring()?;
    let failure = Rc::new(RefCell::new(None));
    let (driven, failed) = (Rc::clone(&context), Rc::clone(&failure));
    let ring = duplicate(context.ws_server.borrow_mut().ring().eventfd()).and_then(EventFd::new)?;
    let bell = match context.transport.with_bell(|bell| duplicate(bell.eventfd())) {
        Some(eventfd) => Some(EventFd::new(eventfd?)?),
        None => None,
    };
    pauses::spawn(async move {
        let error = drive(&driven, ring).await;
        *failed.borrow_mut() = Some(error);
        driven.ended.notify();
    });
    if let Some(bell) = bell {
        pauses::spawn(receive(Rc::clone(&context), bell));
    }
    pauses::spawn(server_pushes::serve(Rc::clone(&context)));
    let relaying = Rc::clone(&context);
    pauses::spawn(async move { relaying.transport.relay_late().await });
    pauses::spawn(http_accept::serve(Rc::clone(&context)));
    let ticking = Rc::clone(&context);
    pauses::spawn(async move { ticking.keep_time().await });
    poll_fn(|task| context.ended.poll(task)).await;
    // The kernel tears rings down asynchronously, and a ring keeps its files open: without the
    // shutdown, connections made in the meantime would never be accepted.
    context.http_port.stop();
    context.ws_server.borrow_mut().stop_listening();
    failure.take().map_or(Ok(()), |error| Err(TaskError::Ring(error)))
}

/// Handles completions of the ring and sends what is owed, for as long as the worker lives. Returns
/// the error that made the ring fail.
async fn drive(context: &WorkerContext, mut eventfd: EventFd) -> io::Error {
    context.ws_server.borrow_mut().ring().submit();
    loop {
        poll_fn(|task| match (context.work.poll(task), eventfd.poll(task)) {
            (Poll::Pending, Poll::Pending) => Poll::Pending,
            _ => Poll::Ready(()),
        })
        .await;
        context.ws_server.borrow_mut().ring().set_eventfd(false);
        loop {
            context.work.clear();
            let began = Instant::now();
            let has_events = context.ws_server.borrow_mut().has_events();
            if has_events {
                let now = clock::now_at(began);
                context.ws_server.borrow_mut().turn(began, now);
                if context.ws_server.borrow_mut().take_http_ready() {
                    context.http_port.handle_ready();
                }
                context.tick(now);
            }
            context.forward_requests();
            if context.observe_turn(began) >= LONG_TURN {
                yield_now().await;
                context.forward_requests();
            }
            let held_for = context.held_for();
            if held_for.is_none() {
                context.flush().await;
            }
            if let Some(error) = context.ws_server.borrow_mut().ring().failure() {
                return io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO));
            }
            context.stir();
            if context.ws_server.borrow_mut().may_sleep(held_for) {
                break;
            }
            yield_now().await;
        }
    }
}

/// Receives what other workers, or the broker's thread, send to this one.
async fn receive(context: Rc<WorkerContext>, mut eventfd: EventFd) {
    loop {
        let began = Instant::now();
        let mut looked = began;
        for count in 1..=MESSAGES_PER_TURN {
            if !context.receive_one(looked) {
                break;
            }
            context.wait_for_room().await;
            if count % MESSAGES_PER_LOOK == 0 {
                looked = Instant::now();
                if looked.duration_since(began) >= RECEIVING {
                    break;
                }
            }
        }
        if !context.transport.has_received_all() {
            context.tick(clock::now());
            yield_now().await;
            continue;
        }
        context.transport.with_bell(Bell::fall_asleep);
        if context.transport.has_received_all() {
            eventfd.wait().await;
        }
    }
}
