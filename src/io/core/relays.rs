//! What the workers of a node tell each other where there is no broker.

use super::{Core, Queue};
use crate::io::mailbox::Mailbox;
use crate::state::wants::{Ask, Notice, Relay, To, Unsent};
use crate::types::SnowflakeClock;
use std::cell::RefCell;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

impl Core {
    /// The `local` queue: there is no broker, so that the workers tell each other.
    pub(super) fn tell_workers(&self, mailbox: &RefCell<Mailbox>, ask: Ask) {
        let mut mailbox = mailbox.borrow_mut();
        match ask {
            Ask::ServerHere(server) => mailbox.notify_all(Notice::ServerHere(server)),
            Ask::ServerGone(cid) => mailbox.notify_all(Notice::ServerGone(cid)),
            Ask::ServerSeen(cid) => {
                let workers = self.shared.settings.workers;
                let holder = SnowflakeClock::worker_of(cid.0, workers);
                mailbox.notify(holder, Notice::ServerKnown(cid));
            }
            Ask::Relay(relay) => self.hand_over(&mut mailbox, relay),
            Ask::Join(_) | Ask::Leave(_) | Ask::UserHere(_) | Ask::UserGone(_) => {}
        }
    }

    fn hand_over(&self, mailbox: &mut Mailbox, relay: Relay) {
        let workers = self.shared.settings.workers;
        let (project, holder) = match relay.to {
            To::Holder { project, cid } => {
                (project, Some(SnowflakeClock::worker_of(cid.0, workers)))
            }
            To::Events(project) => (project, None),
        };
        if !mailbox.relay(project, holder, Arc::from(&relay.parcel[..])) {
            self.engine.borrow_mut().worker.handle_unsent(&relay, Unsent::Full);
        }
    }

    /// Hands over what the other workers had no room for.
    pub(super) fn send_late(&self) {
        let Queue::Local(mailbox) = &self.queue else { return };
        let mut mailbox = mailbox.borrow_mut();
        if mailbox.has_late() {
            mailbox.send_late();
            if mailbox.has_late() {
                self.waits_for_room.raise();
            }
        }
    }

    /// Looks every millisecond for room at the other workers while something waits for it: they do
    /// not say when they have taken something.
    pub(in crate::io) async fn relay_late(&self) {
        loop {
            poll_fn(|context| self.waits_for_room.poll(context)).await;
            monoio::time::sleep(Duration::from_millis(1)).await;
            self.send_late();
        }
    }
}
