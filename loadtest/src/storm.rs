//! `loadtest storm`: many connections end at once and come back, while canaries measure.

use crate::arguments::{Options, nanoseconds, subcommand};
use crate::client::Closing;
use crate::report::Report;
use crate::scenario::plan::{
    Audience, Canaries, Count, Cut, Open, Phase, Population, Reconnect, Scenario, Traffic,
};
use crate::scenario::{self, file};

subcommand! {
    /// Opens all connections, cuts a share of them at once, and measures until all have
    /// reconnected: the rate, and the time each took. Canaries, connections that are left alone,
    /// get pushes from before the cut until after it. --max-p99 judges the canaries' latency,
    /// --min-rate reconnects per second.
    #[argh(subcommand, name = "storm")]
    pub struct StormArguments {
        /// number of connections (1000)
        #[argh(option, default = "1000")]
        connections: [u64],

        /// the share of connections that is cut, 0 to 1 (0.2)
        #[argh(option, default = "0.2")]
        share: [f64],

        /// how they are cut: reset, fin, close (a Close frame) (reset)
        #[argh(option, default = "\"reset\".to_owned()")]
        how: [String],

        /// seconds over which the first reconnect attempts are spread (0: at once)
        #[argh(option, default = "0.0")]
        jitter: [f64],

        /// reconnect attempts per second, over all connections (as many as possible)
        #[argh(option, default = "0.0")]
        reconnect_rate: [f64],

        /// seconds after which connections that have not reconnected count as failed (120)
        #[argh(option, default = "120.0")]
        at_most: [f64],

        /// number of canaries, 0 to 10,000 (100)
        #[argh(option, default = "100")]
        canaries: [u64],

        /// pushes per second, each to all canaries (50)
        #[argh(option, default = "50.0")]
        canary_rate: [f64],

        /// seconds for which canaries are measured before the cut, and after all have reconnected
        /// (2)
        #[argh(option, default = "2.0")]
        calm: [f64],
    }
}

impl StormArguments {
    /// Checks the options and runs the command.
    pub fn run(&self, options: &Options) -> Result<Report, String> {
        scenario::run(options, "storm", self.scenario()?)
    }

    fn scenario(&self) -> Result<Scenario, String> {
        if !(1..=file::MAX_CONNECTIONS).contains(&self.connections) {
            return Err(format!("--connections must be 1 to {}", file::MAX_CONNECTIONS));
        }
        if !(0.0..=1.0).contains(&self.share) {
            return Err("--share must be 0 to 1".to_owned());
        }
        let rate_is_right = (0.01..=file::MAX_PER_S).contains(&self.canary_rate);
        if self.canaries > 10_000 || !rate_is_right {
            return Err("--canaries must be 0 to 10,000, with a --canary-rate above 0".to_owned());
        }
        if !(0.0..=file::MAX_PER_S).contains(&self.reconnect_rate) {
            return Err(format!("--reconnect-rate must be 0 to {}", file::MAX_PER_S));
        }
        let how = match self.how.as_str() {
            "reset" => Closing::Reset,
            "fin" => Closing::Fin,
            "close" => Closing::Clean,
            other => return Err(format!("--how {other} must be reset, fin or close")),
        };
        let calm_ns = nanoseconds("--calm", self.calm)?;
        let at_most_ns = nanoseconds("--at-most", self.at_most)?;
        let canaries = (self.canaries > 0)
            .then_some(Canaries { clients: self.canaries, pushes_per_s: self.canary_rate });
        let calm = |name: &str| Phase {
            name: name.to_owned(),
            duration_ns: calm_ns,
            canaries,
            ..Phase::new()
        };
        let open = Phase {
            name: "open".to_owned(),
            open: Some(Open { to: self.connections, per_s: 0.0 }),
            ..Phase::new()
        };
        let storm = Phase {
            name: "storm".to_owned(),
            cut: Some(Cut { count: Count::Share(self.share), how }),
            reconnect: Some(Reconnect {
                jitter_ns: nanoseconds("--jitter", self.jitter)?,
                per_s: self.reconnect_rate,
                ..Reconnect::AT_ONCE
            }),
            at_most_ns,
            canaries,
            traffic: Traffic::none(),
            ..Phase::new()
        };
        let mut phases = vec![open, calm("before"), storm, calm("after")];
        phases.retain(|phase| phase.has_work() || phase.duration_ns > 0);
        Ok(Scenario { population: Population::new(self.connections, Audience::default()), phases })
    }
}
