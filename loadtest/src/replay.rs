//! `loadtest replay FILE`: a scenario from a file.

use crate::arguments::{Options, subcommand};
use crate::report::Report;
use crate::scenario::{self, file};

subcommand! {
    /// Runs a scenario from a TOML file: phases in which connections are opened, cut and
    /// reconnected, while pushes are sent and every delivery is checked. The report has the figures
    /// of each phase. loadtest/README.md describes the format; loadtest/scenarios/ has examples.
    #[argh(subcommand, name = "replay")]
    pub struct ReplayArguments {
        /// the scenario, such as loadtest/scenarios/morning.toml
        #[argh(positional)]
        file: [String],

        /// number of connections, instead of population.connections; counts in phases scale with it
        #[argh(option)]
        connections: [Option<u64>],
    }
}

impl ReplayArguments {
    /// Reads the file and runs it.
    pub fn run(&self, options: &Options) -> Result<Report, String> {
        let text = std::fs::read_to_string(&self.file)
            .map_err(|error| format!("{}: {error}", self.file))?;
        let mut scenario = file::parse(&self.file, &text)?;
        if let Some(connections) = self.connections {
            if connections == 0 {
                return Err("--connections must be at least 1".to_owned());
            }
            scenario.scale(connections);
        }
        scenario::run(options, "replay", scenario)
    }
}
