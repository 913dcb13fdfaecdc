//! `loadtest tags`: many tags, each client in several, and pushes to intersections.

use crate::arguments::{Options, nanoseconds, subcommand};
use crate::report::Report;
use crate::scenario::plan::{Audience, Open, Phase, Population, Scenario, Traffic};
use crate::scenario::{self, file};

subcommand! {
    /// Opens connections with several tags each and pushes to tags, in turn alone, with a device,
    /// with a list of users, and with both. Every push must reach exactly the connections that
    /// match all of its selectors, once each and in order. --max-p99 judges the time from the
    /// intended push to each delivery, --min-rate deliveries per second.
    #[argh(subcommand, name = "tags")]
    pub struct TagsArguments {
        /// number of connections (1000)
        #[argh(option, default = "1000")]
        connections: [u64],

        /// number of tags (1000)
        #[argh(option, default = "1000")]
        tags: [u64],

        /// number of tags of each connection, 1 to 256 (4)
        #[argh(option, default = "4")]
        tags_per_client: [u64],

        /// devices, which connections take in turn, separated by commas (desktop,phone)
        #[argh(option, default = "\"desktop,phone\".to_owned()")]
        devices: [String],

        /// pushes per second (50)
        #[argh(option, default = "50.0")]
        rate: [f64],

        /// tags in the selector of a push, 1 to 1,000, of which a connection needs one (2)
        #[argh(option, default = "2")]
        tags_per_push: [u64],

        /// users in the selector of every other push, 0 to 1,000 (100)
        #[argh(option, default = "100")]
        users_per_push: [u64],

        /// size of the WebSocket payload; at least 84 (128)
        #[argh(option, default = "128")]
        bytes: [usize],

        /// seconds to push (10)
        #[argh(option, default = "10.0")]
        seconds: [f64],
    }
}

impl TagsArguments {
    /// Checks the options and runs the command.
    pub fn run(&self, options: &Options) -> Result<Report, String> {
        scenario::run(options, "tags", self.scenario(options)?)
    }

    fn scenario(&self, options: &Options) -> Result<Scenario, String> {
        if !(1..=file::MAX_CONNECTIONS).contains(&self.connections) {
            return Err(format!("--connections must be 1 to {}", file::MAX_CONNECTIONS));
        }
        if !(1..=file::MAX_TAGS).contains(&self.tags) {
            return Err(format!("--tags must be 1 to {}", file::MAX_TAGS));
        }
        if !(1..=256).contains(&self.tags_per_client) || self.tags_per_client > self.tags {
            return Err("--tags-per-client must be 1 to 256, and no more than --tags".to_owned());
        }
        if !(1..=1000).contains(&self.tags_per_push) || self.users_per_push > 1000 {
            return Err(
                "--tags-per-push must be 1 to 1,000, --users-per-push 0 to 1,000".to_owned()
            );
        }
        if !(0.01..=file::MAX_PER_S).contains(&self.rate) {
            return Err("--rate must be above 0".to_owned());
        }
        // A device given for all connections leaves no choice.
        let list = if options.device.is_empty() { &self.devices } else { &options.device };
        let devices: Vec<String> =
            list.split(',').filter(|device| !device.is_empty()).map(str::to_owned).collect();
        if let Some(wrong) = devices.iter().find(|device| !file::is_device(device)) {
            return Err(format!(
                "--devices {wrong}: a device must be 1 to 32 of the characters a-z 0-9 _ -"
            ));
        }
        let traffic = Traffic {
            bytes: self.bytes,
            tag_pushes_per_s: self.rate,
            tags_per_push: self.tags_per_push as u32,
            with_devices: !devices.is_empty(),
            with_users: self.users_per_push as u32,
            ..Traffic::none()
        };
        let audience = Audience::new("tag", self.tags as u32, self.tags_per_client as u32, devices);
        let open = Phase {
            name: "open".to_owned(),
            open: Some(Open { to: self.connections, per_s: options.connect_rate }),
            ..Phase::new()
        };
        let tags = Phase {
            name: "tags".to_owned(),
            duration_ns: nanoseconds("--seconds", self.seconds)?.max(1),
            traffic,
            ..Phase::new()
        };
        let population = Population::new(self.connections, audience);
        Ok(Scenario { population, phases: vec![open, tags] })
    }
}
