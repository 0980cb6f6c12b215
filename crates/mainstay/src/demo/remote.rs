//! The demo's control socket: `mainstay demo kill HOST` and `mainstay demo start HOST`.

use super::session::Happening;
use crate::fail::{Context, Failure, Result};
use mainstay_lab::place::{Kind, Place};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

/// A kill waits for processes that die slowly.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
const REQUEST_MAX_BYTES: u64 = 4096;

/// What may be asked of a demo.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Kill a host the hard way.
    Kill {
        /// The host.
        host: String,
    },
    /// Switch a host on.
    Start {
        /// The host.
        host: String,
    },
}

/// A request and where its answer goes.
#[derive(Debug)]
pub(crate) struct Word {
    /// The request.
    pub(crate) request: Request,
    /// Where the answer goes.
    pub(crate) answer: Sender<Result<Value>>,
}

/// Listens until the process ends.
pub(crate) fn listen(socket: &Path, to: Sender<Happening>) -> Result<()> {
    let listener = UnixListener::bind(socket)
        .context("cannot make the demo's control socket")
        .map_err(|e| e.at(socket.display()))?;
    let spawned = std::thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                // Who asks nonsense, or leaves, gets no answer; the next one does.
                drop(serve(&stream, &to));
            }
        });
    spawned.map(drop).context("cannot start a thread")
}

fn serve(mut stream: &UnixStream, to: &Sender<Happening>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let mut line = String::new();
    BufReader::new(stream.take(REQUEST_MAX_BYTES)).read_line(&mut line)?;
    let reply = match serde_json::from_str(&line) {
        Ok(request) => {
            let (answer, answered) = channel();
            let sent = to.send(Happening::Word(Word { request, answer }));
            let result = sent
                .ok()
                .and_then(|()| answered.recv_timeout(ANSWER_WITHIN).ok());
            match result {
                Some(Ok(value)) => json!({ "ok": value }),
                Some(Err(failure)) => json!({ "error": failure.to_string() }),
                None => json!({ "error": "the demo ends" }),
            }
        }
        Err(error) => json!({ "error": format!("not a request: {error}") }),
    };
    writeln!(stream, "{reply}")
}

/// Asks the running demo.
pub(crate) fn ask(request: &Request) -> Result<Value> {
    let note = Place::of_user(Kind::Demo).running().ok_or_else(|| {
        Failure::new("no demo of this user is running")
            .remedy("start one in another terminal: mainstay demo")
    })?;
    let place = |f: Failure| f.at(note.socket.display());
    let mut stream = UnixStream::connect(&note.socket)
        .context("the running demo does not listen")
        .map_err(|f| {
            place(f).remedy("it listens once its first failover is over; try again then")
        })?;
    let request = serde_json::to_string(request)
        .context("cannot write the request")
        .map_err(place)?;
    let exchange = |stream: &mut UnixStream| -> std::io::Result<String> {
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        writeln!(stream, "{request}")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line)
    };
    let line = exchange(&mut stream)
        .context("the demo does not answer")
        .map_err(place)?;
    let mut value: Value = serde_json::from_str(&line)
        .context("the demo's answer makes no sense")
        .map_err(place)?;
    match value.get("error").and_then(Value::as_str) {
        Some(error) => Err(Failure::new(error)),
        None => Ok(value.get_mut("ok").map(Value::take).unwrap_or_default()),
    }
}
