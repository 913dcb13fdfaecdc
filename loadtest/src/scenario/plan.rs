//! What a scenario consists of: who connects, and the phases that these connections go through.

use std::sync::Arc;

use crate::client::Closing;

/// A checked scenario, built by [`super::file`] or by the command that runs it.
pub struct Scenario {
    pub population: Population,
    pub phases: Vec<Phase>,
}

impl Scenario {
    /// Changes the number of connections, and scales those in phases alike.
    pub fn scale(&mut self, connections: u64) {
        let was = self.population.connections;
        let scaled =
            |count: u64| (u128::from(count) * u128::from(connections) / u128::from(was)) as u64;
        for phase in &mut self.phases {
            if let Some(open) = &mut phase.open {
                open.to = scaled(open.to);
            }
            if let Some(Cut { count: Count::Connections(count), .. }) = &mut phase.cut {
                *count = scaled(*count);
            }
        }
        self.population.connections = connections;
    }
}

pub struct Population {
    pub connections: u64,
    pub audience: Arc<Audience>,
    /// Replaces the command line's, if the file sets it.
    pub uid_prefix: Option<String>,
    pub concurrency: Option<usize>,
    pub timeout_ns: Option<u64>,
}

impl Population {
    pub fn new(connections: u64, audience: Audience) -> Population {
        Population {
            connections,
            audience: Arc::new(audience),
            uid_prefix: None,
            concurrency: None,
            timeout_ns: None,
        }
    }
}

/// Tags and device of every connection, as functions of its number.
#[derive(Debug, Default)]
pub struct Audience {
    /// The number of the first user; connection n is user `first_user + n`.
    pub first_user: u64,
    pub tag_prefix: String,
    /// Number of tags.
    pub tags: u32,
    pub tags_per_client: u32,
    /// Connections use these in turn.
    pub devices: Vec<String>,
    /// The tags of the connections n with `n % tags == r`, at `r * tags_per_client`.
    by_remainder: Vec<u32>,
}

impl Audience {
    pub fn new(tag_prefix: &str, tags: u32, tags_per_client: u32, devices: Vec<String>) -> Self {
        let tags_per_client = tags_per_client.min(tags);
        let mut by_remainder = Vec::with_capacity((tags * tags_per_client) as usize);
        for remainder in 0..u64::from(tags) {
            let from = by_remainder.len();
            for i in 0..u64::from(tags_per_client) {
                // Different multiples, so that two tags share some members but not all.
                let mut tag = ((remainder * (2 * i + 1) + 17 * i) % u64::from(tags)) as u32;
                while by_remainder[from..].contains(&tag) {
                    tag = (tag + 1) % tags;
                }
                by_remainder.push(tag);
            }
        }
        let tag_prefix = tag_prefix.to_owned();
        Audience { first_user: 0, tag_prefix, tags, tags_per_client, devices, by_remainder }
    }

    pub fn tags_of(&self, n: u64) -> &[u32] {
        match self.tags {
            0 => &[],
            tags => self.tags_of_remainder((n % u64::from(tags)) as u32),
        }
    }

    fn tags_of_remainder(&self, remainder: u32) -> &[u32] {
        let count = self.tags_per_client as usize;
        let from = remainder as usize * count;
        &self.by_remainder[from..from + count]
    }

    /// Returns the index of its device; `None` if there are no devices.
    pub fn device_of(&self, n: u64) -> Option<usize> {
        let count = self.devices.len() as u64;
        (count > 0).then(|| (n % count) as usize)
    }

    /// Returns the tags and the device that the user with this number sends at connect.
    pub fn parameters(&self, user: u64) -> (String, &str) {
        let n = user - self.first_user;
        let tags: Vec<String> =
            self.tags_of(n).iter().map(|tag| format!("{}{tag}", self.tag_prefix)).collect();
        let device = self.device_of(n).map_or("", |device| &self.devices[device]);
        (tags.join(","), device)
    }
}

/// The receivers of a push: connections that meet every given member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Any of these; empty: any tags.
    pub tags: Vec<u32>,
    pub device: Option<usize>,
    /// A half-open range of connections, by number.
    pub users: Option<(u64, u64)>,
}

impl Selector {
    #[inline]
    pub fn matches(&self, audience: &Audience, n: u64) -> bool {
        self.users.is_none_or(|(from, to)| (from..to).contains(&n))
            && self.device.is_none_or(|device| audience.device_of(n) == Some(device))
            && (self.tags.is_empty() || self.has_one_of(audience.tags_of(n)))
    }

    #[inline]
    fn has_one_of(&self, tags: &[u32]) -> bool {
        tags.iter().any(|tag| self.tags.contains(tag))
    }

    /// Calls `each` with the number of every matching connection in `from..to`. Takes time
    /// proportional to the matches, plus a check of each tag.
    pub fn for_each(&self, audience: &Audience, from: u64, to: u64, mut each: impl FnMut(u64)) {
        let (first, last) = self.users.unwrap_or((0, u64::MAX));
        let (from, to) = (from.max(first), to.min(last));
        let mut visit = |n| {
            if self.device.is_none_or(|device| audience.device_of(n) == Some(device)) {
                each(n);
            }
        };
        let tags = u64::from(audience.tags);
        if self.tags.is_empty() || to.saturating_sub(from) <= tags {
            (from..to).filter(|&n| self.matches(audience, n)).for_each(visit);
            return;
        }
        for remainder in 0..audience.tags {
            if self.has_one_of(audience.tags_of_remainder(remainder)) {
                let ahead = (tags + u64::from(remainder) - from % tags) % tags;
                (from + ahead..to).step_by(tags as usize).for_each(&mut visit);
            }
        }
    }
}

/// A part of a scenario. It ends once its work is done (connections opened, those that were cut
/// reopened, `project_pushes` delivered), `hold_ns` has passed since, and `duration_ns` has passed
/// in total.
#[derive(Clone, Debug, Default)]
pub struct Phase {
    pub name: String,
    pub duration_ns: u64,
    pub hold_ns: u64,
    /// Work that is not done by then is a failure.
    pub at_most_ns: u64,
    /// The phase lasts until this time of the whole run.
    pub until_run_ns: u64,
    pub open: Option<Open>,
    pub cut: Option<Cut>,
    pub reconnect: Option<Reconnect>,
    pub churn_per_s: f64,
    pub traffic: Traffic,
    pub canaries: Option<Canaries>,
    pub drain: bool,
}

/// Default time limit for a phase's work.
pub const AT_MOST_NS: u64 = 600_000_000_000;
/// Default size of a push.
pub const DEFAULT_BYTES: usize = 128;

impl Phase {
    /// Returns a phase in which nothing happens.
    pub fn new() -> Phase {
        Phase { at_most_ns: AT_MOST_NS, traffic: Traffic::none(), ..Phase::default() }
    }

    /// Returns whether anything besides time ends it.
    pub fn has_work(&self) -> bool {
        let comes_back = self.cut.is_some() && self.reconnect.is_some();
        self.open.is_some() || comes_back || self.traffic.project_pushes > 0 || self.drain
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Open {
    /// Number of connections to reach.
    pub to: u64,
    /// 0: no limit.
    pub per_s: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cut {
    pub count: Count,
    pub how: Closing,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Count {
    Share(f64),
    Connections(u64),
}

impl Count {
    /// Returns this count for `open` connections.
    pub fn of(self, open: u64) -> u64 {
        match self {
            Count::Share(share) => ((open as f64 * share).round() as u64).min(open),
            Count::Connections(count) => count.min(open),
        }
    }
}

/// How a connection that was cut, refused or ended by the server comes back.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reconnect {
    /// The first attempt happens after a random part of this.
    pub jitter_ns: u64,
    /// Delay after a failed attempt, doubled with each further one, partly random.
    pub backoff_ns: u64,
    pub backoff_max_ns: u64,
    /// Attempts per second over all connections; 0: no limit.
    pub per_s: f64,
}

impl Reconnect {
    /// At once, and a little later after a failed attempt.
    pub const AT_ONCE: Reconnect = Reconnect {
        jitter_ns: 0,
        backoff_ns: 100_000_000,
        backoff_max_ns: 5_000_000_000,
        per_s: 0.0,
    };
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Size of the WebSocket payload of every push.
    pub bytes: usize,
    /// Pushes to every connection, one after the other: the next once all have the last.
    pub project_pushes: u32,
    pub project_pushes_per_s: f64,
    pub unicast_per_s: f64,
    pub tag_pushes_per_s: f64,
    pub tags_per_push: u32,
    /// Tag pushes alternate between tags alone and tags combined with each of these.
    pub with_devices: bool,
    /// Number of users that a push names besides its tags; 0: none.
    pub with_users: u32,
    pub requests_per_s: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Canaries {
    pub clients: u64,
    pub pushes_per_s: f64,
}

impl Traffic {
    /// Returns traffic without pushes.
    pub fn none() -> Traffic {
        Traffic { bytes: DEFAULT_BYTES, tags_per_push: 1, ..Traffic::default() }
    }

    pub fn any(&self) -> bool {
        self.project_pushes > 0
            || self.project_pushes_per_s > 0.0
            || self.unicast_per_s > 0.0
            || self.tag_pushes_per_s > 0.0
            || self.requests_per_s > 0.0
    }

    /// Returns the selector of tag push number `i`, the same in every run.
    pub fn selector(&self, audience: &Audience, connections: u64, i: u32) -> Selector {
        let mut random = Random::new(u64::from(i) ^ 0x7a65_5f74_6167_7321);
        let shape = match (self.with_devices && !audience.devices.is_empty(), self.with_users > 0) {
            (true, true) => i % 4,
            (true, false) => i % 2,
            (false, true) => i % 2 * 2,
            (false, false) => 0,
        };
        let mut tags = Vec::new();
        while audience.tags > 0 && tags.len() < self.tags_per_push.min(audience.tags) as usize {
            let tag = random.below(u64::from(audience.tags)) as u32;
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        let device = (shape & 1 != 0).then(|| random.below(audience.devices.len() as u64) as usize);
        let users = (shape & 2 != 0).then(|| {
            let from = random.below(connections.max(1));
            (from, (from + u64::from(self.with_users)).min(connections))
        });
        Selector { tags, device, users }
    }
}

/// Returns the user of unicast push number `i`, of `count` users.
#[inline]
pub fn unicast_target(i: u32, count: u64) -> u64 {
    Random::new(u64::from(i)).below(count.max(1))
}

/// SplitMix64: good enough for jitter and for spreading targets, and the same in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    #[inline]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `bound`, or 0.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audience() -> Audience {
        Audience::new("t", 10, 3, vec!["ios".to_owned(), "web".to_owned()])
    }

    #[test]
    fn every_connection_has_as_many_different_tags() {
        for (tags, per_client) in [(10, 3), (1, 1), (7, 7), (1000, 4), (3, 9)] {
            let audience = Audience::new("t", tags, per_client, Vec::new());
            for n in 0..u64::from(tags) * 2 {
                let mut own = audience.tags_of(n).to_vec();
                own.sort_unstable();
                own.dedup();
                assert_eq!(own.len(), per_client.min(tags) as usize, "{n} of {tags}");
                assert!(own.iter().all(|tag| *tag < tags));
            }
        }
        let audience = audience();
        assert_eq!(audience.parameters(3).1, "web");
        assert_eq!(audience.parameters(0), ("t0,t7,t4".to_owned(), "ios"));
    }

    #[test]
    fn those_that_match_are_all_visited_once() {
        let audience = audience();
        let traffic =
            Traffic { tags_per_push: 2, with_devices: true, with_users: 40, ..Traffic::default() };
        let (mut shapes, mut matches) = (0, 0);
        for i in 0..64 {
            let selector = traffic.selector(&audience, 200, i);
            assert_eq!(selector.tags.len(), 2);
            shapes |=
                1 << (u8::from(selector.device.is_some()) * 2 + u8::from(selector.users.is_some()));
            let mut visited = Vec::new();
            selector.for_each(&audience, 13, 187, |n| visited.push(n));
            visited.sort_unstable();
            let wanted: Vec<u64> = (13..187).filter(|&n| selector.matches(&audience, n)).collect();
            assert_eq!(visited, wanted, "{selector:?}");
            matches += wanted.len();
        }
        assert_eq!(shapes, 0b1111, "every combination was there");
        assert!(matches > 0);
        assert!(Selector::default().matches(&audience, 5), "no selector: everybody");
    }

    #[test]
    fn shares_and_counts_are_of_those_open() {
        assert_eq!(Count::Share(0.2).of(1_000), 200);
        assert_eq!(Count::Share(1.0).of(3), 3);
        assert_eq!(Count::Connections(50).of(20), 20);
    }
}
