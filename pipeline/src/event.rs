//! What happens in a run, in one order: all that reporters and run logs see.
//!
//! As JSON (`siteline run --json`) each is one line, an object with `event` and the fields given here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

/// One thing that happened.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The run begins.
    Began {
        /// Its id.
        run: String,
        /// Instances in all.
        total: usize,
        /// Of these, cached already.
        cached: usize,
        /// Instances at once, at most.
        slots: usize,
    },
    /// An instance starts.
    Started {
        /// Its name.
        instance: String,
    },
    /// An instance says how far it is.
    Progress {
        /// Its name.
        instance: String,
        /// Units done.
        done: u64,
        /// Units in all.
        total: u64,
        /// What is counted.
        unit: String,
    },
    /// An instance has something to say to the user.
    Warning {
        /// Its name.
        instance: String,
        /// The text.
        text: String,
    },
    /// An instance waits for another run that computes the same key.
    WaitsForRun {
        /// Its name.
        instance: String,
        /// Host and process of the other run.
        owner: String,
    },
    /// An instance waits for a GPU that another run on this machine has leased.
    WaitsForGpu {
        /// Its name.
        instance: String,
    },
    /// An instance has its result.
    Finished {
        /// Its name.
        instance: String,
        /// How it came by it.
        how: How,
        /// Numbers that it reported; nothing of instances that were cached when the run began.
        metrics: BTreeMap<String, f64>,
    },
    /// An attempt failed, and another will be made.
    Retries {
        /// Its name.
        instance: String,
        /// What went wrong.
        message: String,
        /// The attempt that is to come, counted from 1.
        attempt: usize,
        /// How many there are in all.
        attempts: usize,
        /// Seconds until then.
        in_seconds: f64,
    },
    /// An instance failed.
    Failed {
        /// Its name.
        instance: String,
        /// What went wrong.
        message: String,
        /// Its log.
        log: Option<PathBuf>,
    },
    /// An instance cannot run because one that it reads from failed.
    Blocked {
        /// Its name.
        instance: String,
        /// The failed instance.
        by: String,
    },
    /// The run is being stopped.
    Stopping,
    /// The run is over.
    Ended {
        /// What came of it.
        summary: Summary,
    },
}

/// How an instance came by its result.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// It was in the store when the run began.
    Cached,
    /// What it reads came out as before, so the wave stopped here.
    CutOff,
    /// Another run made it meanwhile.
    ByOtherRun,
    /// Another instance of this run has the same key, and made it.
    Twin,
    /// It was executed, in so many seconds.
    Executed(
        #[serde(serialize_with = "seconds")]
        #[schemars(with = "f64")]
        Duration,
    ),
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

/// What came of a run.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Summary {
    /// The run's id.
    pub run: String,
    /// Instances that were executed.
    pub executed: Vec<String>,
    /// Instances whose result was in the store.
    pub cached: usize,
    /// Instances that failed, with the reason.
    pub failed: Vec<(String, String)>,
    /// Instances that a failure kept from running.
    pub blocked: usize,
    /// Whether the user stopped it.
    pub cancelled: bool,
    /// How long it took, in seconds.
    #[serde(serialize_with = "seconds")]
    #[schemars(with = "f64")]
    pub took: Duration,
}

impl Summary {
    /// Whether everything that was asked for is there.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty() && self.blocked == 0 && !self.cancelled
    }
}

/// The JSON Schema of an [`Event`].
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Event).to_value()
}

/// The JSON Schema of a [`Summary`], as `summary.json` in a run's folder.
pub fn summary_schema() -> serde_json::Value {
    schemars::schema_for!(Summary).to_value()
}
