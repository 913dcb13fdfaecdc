//! What the sockets take, and what happens to the rest.

use super::*;
use crate::checks::take_rest;

/// Maximum number of entries of a batch that are laid out together.
const LARGEST_PART: usize = 4;

impl Node {
    /// Sends the open batch and performs the closes that follow it, until there are no more.
    pub(super) fn flush(&mut self, worker: usize) {
        let mut sealed = Sealed::default();
        loop {
            self.forward_asks(worker);
            if !self.workers[worker].worker.has_output() {
                return;
            }
            let now = self.now();
            let core = &mut self.workers[worker];
            core.worker.match_more(now, |_| {});
            core.worker.seal(&mut sealed);
            while !sealed.is_last_part() {
                let most = 1 + self.rng.below(LARGEST_PART);
                self.workers[worker].worker.lay_out(&mut sealed, most);
                self.notice_closes(worker);
                self.send_part(worker, &sealed);
            }
            for slot in self.workers[worker].worker.take_blocked() {
                let cid = self.workers[worker].slots[&slot];
                self.client(cid).is_blocked = true;
            }
            let closes = self.workers[worker].worker.finish(&mut sealed);
            self.notice_closes(worker);
            closes.into_iter().for_each(|close| self.carry_out_close(worker, close));
        }
    }

    fn send_part(&mut self, worker: usize, sealed: &Sealed) {
        for index in sealed.part() {
            if self.rng.chance(15) && !self.is_ending {
                self.event(worker);
            }
            if let Some(outgoing) = sealed.outgoing(index) {
                let sent = self.send(worker, outgoing.slot, outgoing.bytes);
                let core = &mut self.workers[worker];
                match sent {
                    Some(written) => {
                        let whole = written == outgoing.bytes.len();
                        core.worker.handle_sent(sealed, index, written, whole);
                    }
                    None => core.worker.handle_send_error(sealed, index),
                }
                self.notice_closes(worker);
            }
        }
    }

    /// Returns how much of `bytes` the socket in `slot` takes; `None`: it is broken.
    fn send(&mut self, worker: usize, slot: u32, bytes: &[u8]) -> Option<usize> {
        let cid = self.workers[worker].slots[&slot];
        let wall = self.wall;
        let fast_window = match self.rng.below(100) {
            0..85 => usize::MAX,
            85..95 => self.rng.below(bytes.len()),
            _ => 0,
        };
        let client = self.client(cid);
        if client.is_gone {
            return None;
        }
        if !client.is_slow {
            client.window = fast_window;
        }
        let taken = client.window.min(bytes.len());
        client.window -= taken;
        client.was_short |= taken < bytes.len();
        client.receiver.receive(&bytes[..taken], &client.connect_tags, wall);
        self.hear_texts(cid);
        Some(taken)
    }

    fn carry_out_close(&mut self, worker: usize, request: CloseRequest) {
        let CloseRequest { slot, cause } = request;
        let core = &mut self.workers[worker];
        let cid = core.slots.remove(&slot).expect("a close of a free slot");
        let mut client = self.clients.remove(&cid).unwrap();
        let closing_ms = client.closing_ms.expect("a close that was never decided");
        match cause {
            CloseCause::Idle => {
                assert!(closing_ms - client.heard_ms >= IDLE_MS, "closed too early")
            }
            CloseCause::SlowConsumer => {
                assert!(client.was_short, "closed as slow though it took everything");
            }
            CloseCause::Gone => assert!(client.is_gone),
            CloseCause::Peer(_) | CloseCause::Violation(_) => assert!(client.has_said_goodbye),
            CloseCause::GoingAway { .. } => {}
            CloseCause::ProjectRemoved => assert!(client.is_removed),
            CloseCause::SessionExpired => panic!("no connection here has a session_exp"),
            CloseCause::MessageTimeout | CloseCause::InboundBudget => {
                panic!("the loop around the worker asks for that, not the worker")
            }
        }
        let released = core.worker.release(slot, cause);
        assert_eq!(released.generation, client.key.generation);
        let (now_ms, wall) = (self.now_ms, self.wall);
        let is_told = !client.is_gone && cause != CloseCause::Gone;
        if is_told {
            let mut last = take_rest(released.rest);
            write_close(&mut last, cause.code().unwrap(), "");
            client.receiver.receive(&last, &client.connect_tags, wall);
            assert_eq!(client.receiver.close_code, cause.code());
            servers::hear_texts(cid, &mut client, &mut self.business, now_ms);
        }
        client.receiver.end(!is_told);
        self.business.requests.forget_client(cid);
        core.received += client.receiver.pushes;
        self.note(format!("{cid} closed: {cause:?}"));
    }

    /// Gives a full socket room again.
    pub(super) fn write_blocked(&mut self, worker: usize) {
        let is_blocked = |c: &Client| c.worker == worker && c.is_blocked && c.closing_ms.is_none();
        let blocked: Vec<u64> =
            self.clients.iter().filter(|(_, c)| is_blocked(c)).map(|(cid, _)| *cid).collect();
        if blocked.is_empty() {
            return;
        }
        let cid = *self.rng.pick(&blocked);
        let room = match self.client(cid).is_slow {
            true => self.rng.below(600),
            false => usize::MAX,
        };
        self.write_outbox(cid, room);
    }

    pub(super) fn write_outbox(&mut self, cid: u64, room: usize) {
        let (now, wall) = (self.now(), self.wall);
        let slices = 1 + self.rng.below(5);
        let client = self.clients.get_mut(&cid).unwrap();
        if client.is_gone {
            return self.notice_break(cid);
        }
        let core = &mut self.workers[client.worker];
        let mut bytes = Vec::new();
        if let Some(outbox) = core.worker.outbox(client.key.slot, now.wall) {
            outbox.slices(slices, |slice| bytes.extend_from_slice(slice));
            assert!(outbox.is_empty() || slices < 2 || !bytes.is_empty());
        }
        client.window = room;
        let taken = room.min(bytes.len());
        client.window -= taken;
        client.receiver.receive(&bytes[..taken], &client.connect_tags, wall);
        client.is_blocked = core.worker.handle_outbox_written(client.key.slot, taken);
        client.was_short |= client.is_blocked;
        let worker = client.worker;
        self.hear_texts(cid);
        self.notice_closes(worker);
    }
}
