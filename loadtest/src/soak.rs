//! `loadtest soak`: everything at once, for hours.

use crate::arguments::{Options, nanoseconds, subcommand};
use crate::report::Report;
use crate::scenario::plan::{Audience, Canaries, Open, Phase, Population, Scenario, Traffic};
use crate::scenario::{self, file};

subcommand! {
    /// Mixed traffic for hours: pushes to all, to tags and to single users, requests, canaries, and
    /// connections that end and reconnect all the time. Nothing may be lost or duplicated. With
    /// --pid-of-server the report has the trend of the server's memory: the slope over the second
    /// half, in bytes per hour. --max-p99 judges the canaries' latency, --min-rate deliveries per
    /// second.
    #[argh(subcommand, name = "soak")]
    pub struct SoakArguments {
        /// number of connections (1000)
        #[argh(option, default = "1000")]
        connections: [u64],

        /// hours to run (1)
        #[argh(option)]
        hours: [Option<f64>],

        /// seconds to run, instead of --hours
        #[argh(option)]
        seconds: [Option<f64>],

        /// connections per second that end, half with a Close frame, half reset, and reconnect (10)
        #[argh(option, default = "10.0")]
        churn: [f64],

        /// pushes per second to all connections (0.2)
        #[argh(option, default = "0.2")]
        project_rate: [f64],

        /// pushes per second to tags, devices and users (5)
        #[argh(option, default = "5.0")]
        tag_rate: [f64],

        /// pushes per second to one user each (200)
        #[argh(option, default = "200.0")]
        unicast_rate: [f64],

        /// requests per second to business servers, which the tool provides (50)
        #[argh(option, default = "50.0")]
        request_rate: [f64],

        /// size of the WebSocket payload; at least 84 (128)
        #[argh(option, default = "128")]
        bytes: [usize],
    }
}

const TAGS: u32 = 200;
const TAGS_PER_CLIENT: u32 = 4;

impl SoakArguments {
    /// Checks the options and runs the command.
    pub fn run(&self, options: &Options) -> Result<Report, String> {
        scenario::run(options, "soak", self.scenario(options)?)
    }

    fn scenario(&self, options: &Options) -> Result<Scenario, String> {
        if !(1..=file::MAX_CONNECTIONS).contains(&self.connections) {
            return Err(format!("--connections must be 1 to {}", file::MAX_CONNECTIONS));
        }
        let seconds = match (self.hours, self.seconds) {
            (Some(_), Some(_)) => return Err("use --hours or --seconds, not both".to_owned()),
            (hours, None) => hours.unwrap_or(1.0) * 3600.0,
            (None, Some(seconds)) => seconds,
        };
        for (option, per_s) in [
            ("--churn", self.churn),
            ("--project-rate", self.project_rate),
            ("--tag-rate", self.tag_rate),
            ("--unicast-rate", self.unicast_rate),
            ("--request-rate", self.request_rate),
        ] {
            if !(0.0..=file::MAX_PER_S).contains(&per_s) {
                return Err(format!("{option} must be 0 to {}", file::MAX_PER_S));
            }
        }
        let devices = vec!["desktop".to_owned(), "phone".to_owned()];
        let open = Phase {
            name: "open".to_owned(),
            open: Some(Open { to: self.connections, per_s: options.connect_rate }),
            ..Phase::new()
        };
        let soak = Phase {
            name: "soak".to_owned(),
            duration_ns: nanoseconds("--seconds", seconds)?.max(1),
            churn_per_s: self.churn,
            canaries: Some(Canaries { clients: 20, pushes_per_s: 10.0 }),
            traffic: Traffic {
                bytes: self.bytes,
                project_pushes_per_s: self.project_rate,
                unicast_per_s: self.unicast_rate,
                tag_pushes_per_s: self.tag_rate,
                tags_per_push: 2,
                with_devices: true,
                with_users: 50,
                requests_per_s: self.request_rate,
                ..Traffic::none()
            },
            ..Phase::new()
        };
        let audience = Audience::new("tag", TAGS, TAGS_PER_CLIENT, devices);
        let population = Population::new(self.connections, audience);
        Ok(Scenario { population, phases: vec![open, soak] })
    }
}
