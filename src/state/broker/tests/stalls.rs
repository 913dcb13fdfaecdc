//! The node's own slowness is never mistaken for silence of the other side, be it Redis or a node.

use super::*;

/// Redis's output by link, kept until this node reads it.
#[derive(Default)]
struct Unread {
    answers: Vec<u8>,
    messages: Vec<u8>,
}

impl Unread {
    /// Redis executes the commands sent; none of its output is read yet.
    fn collect(&mut self, setting: &mut Setting) {
        for link in [LinkName::Subscribe, LinkName::Publish] {
            let mut out = Vec::new();
            setting.broker.take_outgoing(link, &mut out, usize::MAX);
            for command in commands(&out) {
                match link {
                    LinkName::Publish => {
                        setting.execute(&command, &mut self.answers, &mut self.messages);
                    }
                    LinkName::Subscribe => {
                        let mut answers = Vec::new();
                        setting.execute(&command, &mut answers, &mut Vec::new());
                        self.messages.extend(answers);
                    }
                }
            }
        }
    }

    /// Offers all of it; what there is no room for stays.
    fn offer(&mut self, setting: &mut Setting) {
        for (link, bytes) in
            [(LinkName::Subscribe, &mut self.messages), (LinkName::Publish, &mut self.answers)]
        {
            let (now, recorder) = (setting.now.monotonic, &mut setting.recorder);
            let handled = setting.broker.handle_bytes(link, bytes, now, recorder).unwrap();
            bytes.drain(..handled.bytes);
            assert_eq!(handled.is_paused, !bytes.is_empty());
        }
    }
}

fn tick_only(setting: &mut Setting, ms: u64) -> Result<(), LinkError> {
    setting.now.monotonic += ms;
    setting.broker.handle_tick(setting.now, &mut setting.recorder)
}

/// One push of 50 KB to 18,500 clients: the open batch was full for seconds, and the links were
/// closed for lack of replies that this node had not read.
#[test]
fn a_full_batch_is_not_redis_that_is_silent() {
    let mut setting = Setting::ready(1);
    setting.join(0);
    setting.talk();
    say(&mut setting, 9, 1, |_| {});
    let mut unread = Unread::default();
    for ticket in 0..20 {
        setting.push(ticket, &ticket.to_string(), &TargetsBuf::default());
    }
    unread.collect(&mut setting);
    setting.recorder.is_full = true;
    unread.offer(&mut setting);
    for _ in 0..10_000 / 50 {
        assert_eq!(tick_only(&mut setting, 50), Ok(()));
        unread.collect(&mut setting);
    }
    assert!(setting.recorder.answers.is_empty(), "a push is not late for what is not read");
    setting.recorder.is_full = false;
    unread.offer(&mut setting);
    assert_eq!(tick_only(&mut setting, 50), Ok(()));
    let accepted: Vec<_> = (0..20).map(|ticket| (ticket, Outcome::Accepted)).collect();
    assert_eq!(setting.recorder.answers, accepted);
    assert_eq!(setting.recorder.delivered.len(), 20);
    assert_eq!((setting.broker.nodes(), setting.broker.is_ready()), (2, true));
}

/// There is room now and then, but always a larger backlog to read: while it lasts, canary and PONG
/// are behind it.
#[test]
fn a_canary_behind_a_backlog_is_not_lost() {
    let mut setting = Setting::ready(1);
    setting.join(0);
    setting.talk();
    say(&mut setting, 9, 1, |_| {});
    let mut unread = Unread::default();
    setting.push(1, "x", &TargetsBuf::default());
    unread.collect(&mut setting);
    let backlog = unread.messages.clone();
    for _ in 0..10_000 / 50 {
        // Read in the order in which it was sent.
        let (now, recorder) = (setting.now.monotonic, &mut setting.recorder);
        let handled = setting.broker.handle_bytes(LinkName::Subscribe, &backlog, now, recorder);
        assert!(handled.is_ok());
        let answers = std::mem::take(&mut unread.answers);
        setting.hear(LinkName::Publish, &answers);
        assert_eq!(tick_only(&mut setting, 50), Ok(()));
        unread.collect(&mut setting);
    }
    assert_eq!(setting.broker.nodes(), 2, "its words are behind it, too");
    unread.offer(&mut setting);
    assert_eq!(tick_only(&mut setting, 50), Ok(()));
    // What was sent since is read and contains nothing from that node.
    assert!(setting.tick(6_000).is_ok());
    assert_eq!((setting.broker.nodes(), setting.broker.is_ready()), (1, true));
}

/// SIGSTOP, or the migration of a virtual machine: a push was answered meanwhile.
#[test]
fn a_node_that_stood_still_reads_before_it_judges() {
    let mut setting = Setting::ready(1);
    setting.join(0);
    setting.talk();
    say(&mut setting, 9, 1, |_| {});
    setting.tick(450).unwrap();
    let mut unread = Unread::default();
    setting.push(1, "under way", &TargetsBuf::default());
    assert_eq!(tick_only(&mut setting, 50), Ok(()));
    unread.collect(&mut setting);
    // Ticks may come first.
    assert_eq!(tick_only(&mut setting, 10_000), Ok(()));
    assert_eq!(tick_only(&mut setting, 50), Ok(()));
    assert!(setting.recorder.answers.is_empty());
    assert_eq!(setting.broker.nodes(), 2);
    unread.offer(&mut setting);
    assert_eq!(setting.recorder.answers, [(1, Outcome::Accepted)]);
    say(&mut setting, 9, 1, |_| {});
    assert!(setting.tick(4_000).is_ok());
    assert_eq!((setting.broker.nodes(), setting.broker.is_ready()), (2, true));
}

/// 26 MB to a Redis that reads them in two seconds.
#[test]
fn a_long_message_that_is_being_written_is_no_silence() {
    for has_progress in [true, false] {
        let mut setting = Setting::ready(1);
        setting.push(1, "long", &TargetsBuf::default());
        let mut failed = None;
        for _ in 0..3_000 / 50 {
            failed = failed.or(tick_only(&mut setting, 50).err());
            let mut out = Vec::new();
            setting.broker.take_outgoing(LinkName::Subscribe, &mut out, usize::MAX);
            if !out.is_empty() {
                setting.hear(LinkName::Subscribe, b"+PONG\r\n");
            }
            if has_progress {
                setting.broker.handle_written(LinkName::Publish, setting.now.monotonic);
            }
        }
        assert_eq!(failed, (!has_progress).then_some(LinkError::Silent));
    }
}

/// A real loss is detected as early as before.
#[test]
fn a_redis_that_delivers_nothing_is_noticed_in_time() {
    for ms in (0..1_000).step_by(50) {
        let mut setting = Setting::ready(1);
        setting.tick(3_000 + ms).unwrap();
        setting.is_deaf = true;
        assert_eq!(setting.tick(2_500), Err(LinkError::CanaryLost), "after {ms} ms");
    }
}

/// Three pushes of 20 MB at once were answered 200, and Redis disconnected all subscribers:
/// together they exceeded its output buffer for one.
#[test]
fn large_messages_wait_until_those_before_have_left_redis() {
    let mut setting = Setting::ready(1);
    setting.join(0);
    setting.tick(50).unwrap();
    let data = "x".repeat(11 << 20);
    for ticket in 0..3 {
        setting.push(ticket, &data, &TargetsBuf::default());
    }
    let mut unread = Unread::default();
    unread.collect(&mut setting);
    assert_eq!(unread.messages.len() / data.len(), 2, "of 32 MiB a message may take four fifths");
    let answers = std::mem::take(&mut unread.answers);
    setting.hear(LinkName::Publish, &answers);
    assert_eq!(setting.recorder.answers.len(), 2);
    for _ in 0..1_500 / 50 {
        // The first of them is in transit to this node for as long.
        let (now, some) = (setting.now.monotonic, &unread.messages[..1_000]);
        let handled =
            setting.broker.handle_bytes(LinkName::Subscribe, some, now, &mut setting.recorder);
        assert!(handled.is_ok());
        assert_eq!(tick_only(&mut setting, 50), Ok(()), "Redis owes nothing");
        unread.collect(&mut setting);
    }
    assert_eq!(unread.messages.len() / data.len(), 2, "what is answered may be in its buffers");
    unread.offer(&mut setting);
    unread.collect(&mut setting);
    assert_eq!(unread.messages.len() / data.len(), 1);
    unread.offer(&mut setting);
    let accepted: Vec<_> = (0..3).map(|ticket| (ticket, Outcome::Accepted)).collect();
    assert_eq!(setting.recorder.answers, accepted);
}

/// A node moved from one Redis to another with a smaller output buffer, and until its next tick it
/// sent unanswered messages again within the limits of the first.
#[test]
fn what_another_redis_holds_is_known_before_anything_is_sent_again() {
    let mut setting = Setting::new(1);
    setting.output_limit = 100_000_000;
    setting.open();
    setting.tick(150).unwrap();
    setting.join(0);
    setting.talk();
    let data = "x".repeat(70_000);
    (0..9).for_each(|ticket| setting.push(ticket, &data, &TargetsBuf::default()));
    let mut unread = Unread::default();
    unread.collect(&mut setting);
    assert_eq!(unread.messages.len() / data.len(), 9);
    setting.broker.handle_lost(&mut setting.recorder);
    setting.output_limit = 300_000;
    setting.broker.handle_open(setting.now);
    let mut unread = Unread::default();
    for _ in 0..100 {
        unread.collect(&mut setting);
        assert!(unread.messages.len() < 240_000 + 1_000, "{} bytes", unread.messages.len());
        unread.offer(&mut setting);
    }
    assert_eq!(setting.recorder.answers.len(), 9);
}
