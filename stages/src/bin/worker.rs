//! The built-in pack as a program: the stage protocol on standard streams (see `siteline_pipeline::protocol`).

use std::io::{BufRead, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::channel;

use siteline_pipeline::protocol::{self, Reply, Request, RunRequest};
use siteline_stages::kind::context::Ctx;
use siteline_stages::kind::{Work, registry};
use siteline_stages::runtime;

fn main() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).without_time().init();
    runtime::keep_memory();
    let (sender, requests) = channel::<String>();
    // The driver's end of standard input closes with the driver, however that ends: a worker never outlives it.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
        drop(sender);
        std::thread::sleep(std::time::Duration::from_millis(200));
        std::process::exit(0);
    });
    let mut cuda_is_open = false;
    for line in requests {
        match serde_json::from_str(&line) {
            Ok(Request::Describe) => {
                let kinds = registry().into_iter().map(|(kind, _)| kind).collect();
                say(Reply::Kinds { protocol: protocol::VERSION, kinds });
            }
            Ok(Request::Run(request)) => {
                if !std::mem::replace(&mut cuda_is_open, true) {
                    runtime::open_cuda();
                }
                let reply = run(&request);
                runtime::give_memory_back();
                say(reply);
            }
            Err(e) => say(Reply::Failed { message: format!("not a request: {e}"), instance: None }),
        }
    }
}

/// One line, whole, at once.
fn say(reply: Reply) {
    let mut line = serde_json::to_string(&reply).expect("a reply is JSON");
    line.push('\n');
    let mut out = std::io::stdout().lock();
    // With nobody listening the work is in vain; the thread that reads standard input ends the process.
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

fn run(request: &RunRequest) -> Reply {
    let instance = Some(request.instance.clone());
    match attempt(request) {
        Ok(()) => Reply::Done { environment: runtime::environment(request.threads), instance },
        Err(message) => Reply::Failed { message, instance },
    }
}

fn attempt(request: &RunRequest) -> Result<(), String> {
    let found = registry().into_iter().find(|(kind, _)| kind.name == request.kind);
    let (kind, work) = found.ok_or_else(|| format!("this worker has no stage kind `{}`", request.kind))?;
    if kind.code != request.code {
        return Err("the worker was built anew since the plan was made; run again".to_owned());
    }
    runtime::set_threads(request.threads);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(request.threads.max(1)).build();
    let pool = pool.map_err(|e| format!("no threads: {e}"))?;
    catch_unwind(AssertUnwindSafe(|| pool.install(|| carry_out(work, request)))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(format!("a bug in the stage: {}", text.unwrap_or("no message")))
    })
}

fn carry_out(work: Work, request: &RunRequest) -> Result<(), String> {
    work(&Ctx::new(request, &say)).map_err(|error| error.to_string())
}
