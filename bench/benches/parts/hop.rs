//! From one worker to another: the ring between them.

use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use criterion::{Criterion, Throughput};
use rtrb::RingBuffer;
use ws_cluster::io::mailbox::{Mailbox, MailboxMessage};

use crate::{pair, text};

pub fn measure(criterion: &mut Criterion) {
    let envelope: Arc<[u8]> = text(200).into();
    let mut mailboxes = Mailbox::all(2).unwrap();
    let [from, to] = &mut mailboxes[..] else { unreachable!() };
    let (mut producer, mut consumer) = RingBuffer::<Arc<[u8]>>::new(4_096);
    pair(
        criterion,
        "hand an envelope to a worker and take it, on one thread",
        Throughput::Elements(1),
        || {
            assert!(from.has_room(u64::MAX));
            from.send(black_box(&envelope), u64::MAX);
            assert!(matches!(to.receive(), Some(MailboxMessage::Envelope(_))));
        },
        ("a push to the bare ring and a pop", || {
            producer.push(Arc::clone(black_box(&envelope))).unwrap();
            consumer.pop().unwrap().len()
        }),
    );
    there_and_back(criterion, &envelope);
}

/// Two threads that both stay awake; if they share a core, this measures the scheduler.
fn there_and_back(criterion: &mut Criterion, envelope: &Arc<[u8]>) {
    let mut mailboxes = Mailbox::all(2).unwrap().into_iter();
    let (mut near, mut far) = (mailboxes.next().unwrap(), mailboxes.next().unwrap());
    let is_over = Arc::new(AtomicBool::new(false));
    let (here, there) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let echo = {
        let (is_over, here, there) = (is_over.clone(), here.clone(), there.clone());
        thread::spawn(move || {
            let mut seen = 0;
            while !is_over.load(Ordering::Relaxed) {
                if let Some(MailboxMessage::Envelope(envelope)) = far.receive() {
                    far.send(&envelope, u64::MAX);
                }
                let asked = here.load(Ordering::Acquire);
                if asked != seen {
                    seen = asked;
                    there.store(seen, Ordering::Release);
                }
                spin_loop();
            }
        })
    };
    let mut number = 0;
    pair(
        criterion,
        "an envelope to a worker on another core and back",
        Throughput::Elements(2),
        || {
            near.send(envelope, u64::MAX);
            while near.receive().is_none() {
                spin_loop();
            }
        },
        ("a cache line there and back", || {
            number += 1;
            here.store(number, Ordering::Release);
            while there.load(Ordering::Acquire) != number {
                spin_loop();
            }
        }),
    );
    is_over.store(true, Ordering::Relaxed);
    echo.join().unwrap();
}
