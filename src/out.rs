//! Standard output of the verbs: nothing in it steers a terminal, and what cannot be written is an error, not a panic.

use std::fmt::Arguments;
use std::io::{IsTerminal, Write};

/// Prints a line; as `println!`.
macro_rules! outln {
    () => { $crate::out::write(format_args!("\n")) };
    ($($text:tt)*) => { $crate::out::write(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints without a line end; as `print!`.
macro_rules! out {
    ($($text:tt)*) => { $crate::out::write(format_args!($($text)*)) };
}

/// Prints a line to standard error, as `eprintln!`; where that cannot be written to, nobody is left to be told.
macro_rules! errln {
    ($($text:tt)*) => { { let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", format_args!($($text)*))); } };
}

/// Writes to standard output, or ends the process with an error.
pub fn write(text: Arguments) {
    let mut out = std::io::stdout().lock();
    let written = match out.is_terminal() {
        true => out.write_all(siteline_pipeline::printable::printable(&text.to_string()).as_bytes()),
        false => out.write_fmt(text),
    };
    if let Err(error) = written.and_then(|()| out.flush())
        // A reader that went away is no reason to fail.
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        errln!("error: failed to write to standard output: {error}");
        std::process::exit(1);
    }
}
