//! Where instances run: worker processes of packs, and commands.

use std::collections::BTreeMap;

use siteline_cache::{Committed, Output};

use crate::printable::printable;
use crate::protocol::Reply;

pub(crate) mod command;
pub(crate) mod crew;
pub(crate) mod gate;
pub(crate) mod gpus;
pub(crate) mod log;
pub(crate) mod orphans;
pub(crate) mod outputs;
pub mod processes;
pub mod sandbox;
pub(crate) mod streams;
pub(crate) mod work_dir;
pub(crate) mod workers;

/// What reaches the driver from everything that is at work.
#[derive(Debug)]
pub(crate) enum Message {
    /// A worker's reply, and the bytes of its line.
    Reply(usize, Reply, usize),
    /// A line of a worker that is for the log: standard error, or something that is no reply.
    Line(usize, String),
    /// A worker ended.
    Ended(usize),
    /// What a command says while it is at work, by the number of its job.
    Said(u64, Reply),
    /// A command has ended: what it held is free while its outputs, which are large, are taken in.
    Freed(u64),
    /// A job's outputs are in the store, or why not.
    Made(u64, Result<Made, Failure>),
    /// A record is durable, or why not.
    Committed(Committed),
}

/// What an instance made.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub(crate) outputs: Vec<Output>,
    /// Where and with what it ran, where that is known here.
    pub(crate) environment: BTreeMap<String, String>,
}

/// Why an instance made nothing that counts.
#[derive(Debug)]
pub(crate) struct Failure {
    /// In one line.
    pub(crate) message: String,
    /// Whether another attempt may fare better.
    pub(crate) again: bool,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: printable(&message.into()), again: true }
    }
}
