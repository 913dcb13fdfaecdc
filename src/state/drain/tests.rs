use super::*;

/// A worker whose answers the test sets.
struct Fake {
    times: DrainTimes,
    awaits_answer: bool,
    has_delivered: bool,
    clients: usize,
    servers: usize,
    node_connections: usize,
    is_empty: bool,
}

impl DrainingWorker for Fake {
    fn times(&self) -> DrainTimes {
        self.times
    }

    fn awaits_answer(&self) -> bool {
        self.awaits_answer
    }

    fn has_delivered(&mut self) -> bool {
        self.has_delivered
    }

    fn clients(&self) -> usize {
        self.clients
    }

    fn servers(&self) -> usize {
        self.servers
    }

    fn node_connections(&self) -> usize {
        self.node_connections
    }

    fn is_empty(&self) -> bool {
        self.is_empty
    }
}

fn fake(clients: usize) -> Fake {
    Fake {
        times: DrainTimes { delay_ms: 0, window_ms: 8_000, linger_ms: 2_000 },
        awaits_answer: false,
        has_delivered: true,
        clients,
        servers: 0,
        node_connections: clients,
        is_empty: false,
    }
}

fn ms(ms: u64) -> MonotonicMs {
    MonotonicMs::new(ms)
}

/// Takes steps until there is nothing to do for now, as a tick does; closes what is to be closed.
fn tick(drain: &mut Drain, now_ms: u64, node: &NodeDrain, worker: &mut Fake) -> Vec<DrainStep> {
    let mut steps = Vec::new();
    loop {
        let step = drain.step(ms(now_ms), node, worker);
        match step {
            DrainStep::Wait => return steps,
            DrainStep::CloseClients { left, .. } => worker.clients = left,
            DrainStep::CloseServers { .. } => worker.servers = 0,
            DrainStep::Refuse | DrainStep::End => {}
        }
        steps.push(step);
        if matches!(step, DrainStep::CloseClients { .. } | DrainStep::End) {
            return steps;
        }
    }
}

#[test]
fn a_worker_without_anything_ends_at_once() {
    let (mut drain, node) = (Drain::default(), NodeDrain::new(1, false));
    let mut worker = Fake { is_empty: true, ..fake(0) };
    let steps = tick(&mut drain, 1_000, &node, &mut worker);
    let spread_ms = MIN_SPREAD_MS as u32;
    assert_eq!(steps, [DrainStep::Refuse, DrainStep::CloseServers { spread_ms }, DrainStep::End]);
}

#[test]
fn it_serves_until_the_delay_is_over() {
    let (mut drain, node) = (Drain::default(), NodeDrain::new(1, false));
    let mut worker = fake(5);
    worker.times.delay_ms = 3_000;
    assert_eq!(tick(&mut drain, 1_000, &node, &mut worker), []);
    assert_eq!(tick(&mut drain, 3_999, &node, &mut worker), []);
    let steps = tick(&mut drain, 4_000, &node, &mut worker);
    assert_eq!(steps.first(), Some(&DrainStep::Refuse));
    assert!(drain.is_closing());
}

/// Each worker decided for itself: one without pushes of its own closed clients that had not got
/// those of the others.
#[test]
fn nobody_closes_before_every_worker_has_delivered() {
    let node = NodeDrain::new(2, false);
    let (mut drains, mut workers) = ([Drain::default(), Drain::default()], [fake(2), fake(2)]);
    workers[1].awaits_answer = true;
    let mut tick = |index: usize, now_ms, workers: &mut [Fake; 2]| {
        tick(&mut drains[index], now_ms, &node, &mut workers[index])
    };
    assert_eq!(tick(0, 0, &mut workers), [DrainStep::Refuse]);
    assert_eq!(tick(1, 10, &mut workers), [DrainStep::Refuse]);
    assert_eq!(tick(0, 20, &mut workers), []);
    (workers[1].awaits_answer, workers[0].has_delivered) = (false, false);
    assert_eq!(tick(1, 30, &mut workers), []);
    assert_eq!(tick(0, 40, &mut workers), [], "something is still in its mailbox");
    assert_eq!(tick(1, 50, &mut workers), [], "the other has not delivered it");
    workers[0].has_delivered = true;
    tick(0, 60, &mut workers);
    tick(0, 4_000, &mut workers);
    assert_eq!(workers[0].clients, 0);
    assert_eq!(workers[1].clients, 2);
    tick(1, 4_000, &mut workers);
    tick(1, 8_000, &mut workers);
    assert_eq!(workers[1].clients, 0);
}

#[test]
fn a_queue_confirms_before_clients_and_before_servers_are_closed() {
    let (mut drain, node) = (Drain::default(), NodeDrain::new(1, true));
    let mut worker = Fake { servers: 1, ..fake(1) };
    assert!(!node.is_round_due());
    assert_eq!(tick(&mut drain, 0, &node, &mut worker), [DrainStep::Refuse]);
    assert!(node.is_round_due() && !node.has_told());
    assert_eq!(tick(&mut drain, 10, &node, &mut worker), []);
    node.complete_round();
    assert!(!node.is_round_due());
    tick(&mut drain, 20, &node, &mut worker);
    let steps = tick(&mut drain, 40, &node, &mut worker);
    assert_eq!((steps.len(), worker.clients), (1, 0), "{steps:?}");
    assert_eq!(tick(&mut drain, 50, &node, &mut worker), []);
    assert!(node.is_round_due() && node.has_told() && worker.servers == 1);
    node.complete_round();
    assert!(!node.is_round_due());
    worker.is_empty = true;
    let steps = tick(&mut drain, 60, &node, &mut worker);
    assert_eq!((steps.last(), worker.servers), (Some(&DrainStep::End), 0));
}

#[test]
fn what_never_ends_has_its_time() {
    let (mut drain, node) = (Drain::default(), NodeDrain::new(2, true));
    let mut worker = Fake { servers: 1, awaits_answer: true, ..fake(1_000) };
    assert_eq!(tick(&mut drain, 0, &node, &mut worker), [DrainStep::Refuse]);
    assert_eq!(tick(&mut drain, 3_999, &node, &mut worker), [], "half of the window");
    tick(&mut drain, 4_000, &node, &mut worker);
    assert!(drain.is_closing());
    let steps = tick(&mut drain, 6_000, &node, &mut worker);
    assert!(matches!(steps[..], [DrainStep::CloseClients { left: 0, may_wait: false, .. }]));
    assert_eq!(tick(&mut drain, 6_999, &node, &mut worker), []);
    let steps = tick(&mut drain, 7_000, &node, &mut worker);
    assert!(matches!(steps[..], [DrainStep::CloseServers { .. }]), "{steps:?}");
    assert_eq!(tick(&mut drain, 7_999, &node, &mut worker), []);
    assert_eq!(tick(&mut drain, 8_000, &node, &mut worker), [DrainStep::End]);
}

/// Returns when clients were closed, and when they come back.
fn drained(clients: usize, workers: usize, tick_ms: usize) -> (Vec<u64>, Vec<u64>) {
    let node = NodeDrain::new(workers, false);
    let mut drains: Vec<Drain> = (0..workers).map(|_| Drain::default()).collect();
    let mut all: Vec<Fake> = (0..workers).map(|_| fake(clients / workers)).collect();
    let mut spreads: Vec<Spread> = (0..workers).map(|it| Spread::new(it as u32 * 77_777)).collect();
    let (mut closed, mut back) = (Vec::new(), Vec::new());
    for now_ms in (0..8_000).step_by(tick_ms) {
        let open: usize = all.iter().map(|one| one.clients).sum();
        for index in 0..workers {
            let worker = &mut all[index];
            worker.node_connections = open;
            let before = worker.clients;
            for step in tick(&mut drains[index], now_ms, &node, worker) {
                let DrainStep::CloseClients { left, spread_ms, .. } = step else { continue };
                for _ in left..before {
                    closed.push(now_ms);
                    back.push(now_ms + u64::from(spreads[index].next_ms(spread_ms)));
                }
            }
        }
    }
    (closed, back)
}

/// Returns the largest number of times within 100 ms, divided by the mean.
fn crowd(times: &[u64]) -> f64 {
    let end = times.iter().max().unwrap() / 100 + 1;
    let mut bins = vec![0_u32; end as usize];
    times.iter().for_each(|ms| bins[(ms / 100) as usize] += 1);
    f64::from(*bins.iter().max().unwrap()) * bins.len() as f64 / times.len() as f64
}

#[test]
fn closes_and_reconnects_are_even() {
    for (clients, workers) in [(15_000, 1), (15_000, 8), (1_500, 2), (1_000_000, 52)] {
        let (closed, back) = drained(clients, workers, 10);
        assert_eq!(closed.len(), clients / workers * workers);
        let (first, last) = (closed[0], closed[closed.len() - 1]);
        assert!(first < 100 && (5_500..=6_010).contains(&last), "{first} {last}");
        assert!(*back.iter().max().unwrap() <= 8_000);
        let (closes, connects) = (crowd(&closed), crowd(&back));
        assert!(closes < 1.3 && connects < 1.6, "{clients} {workers}: {closes} {connects}");
    }
}

#[test]
fn few_clients_are_closed_soon() {
    for (clients, until_ms) in [(1, 20), (40, 420), (100, 1_020)] {
        let (closed, back) = drained(clients, 1, 10);
        assert_eq!(closed.len(), clients);
        assert!(*closed.last().unwrap() <= until_ms, "{closed:?}");
        assert!(back.iter().zip(&closed).all(|(back, closed)| back - closed < MIN_SPREAD_MS));
    }
}
