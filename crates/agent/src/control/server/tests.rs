use super::*;
use crate::control::client::{Client, ClientError};
use mainstay_core::config::{HostSpec, Settings};
use std::io::{BufRead as _, BufReader};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

fn config() -> ClusterConfig {
    let host = HostSpec {
        id: HostId::new("host-1").expect("id"),
        cpu_mhz: 1,
        memory_mb: 1,
        datastores: Default::default(),
        maintenance: false,
        networks: Default::default(),
    };
    let settings = Settings::default();
    ClusterConfig::new(1, settings, vec![host], vec![], vec![], vec![]).expect("sound")
}

/// A socket whose loop answers what the client asks first, and does with a change as it is told.
fn served(dir: &Path, on_change: impl Fn(Proposal) + Send + Sync + 'static) -> Client {
    let ask = move |ask| {
        match ask {
            Ask::Ping(to) => drop(to.try_send(Pong {
                host: HostId::new("host-1").expect("id"),
                pid: 1,
                guard_pid: None,
                version: String::new(),
            })),
            Ask::Config(to) => drop(to.try_send(config())),
            Ask::Change(proposal) => on_change(proposal),
            other => panic!("{other:?}"),
        }
        true
    };
    let events = EventLog::start(dir).expect("events");
    let path = dir.join("control.sock");
    start(&path, Arc::new(ask), events).expect("started");
    Client::connect(&path).expect("connected")
}

fn refusal(client: &Client) -> String {
    match client.change(vec![]) {
        Err(ClientError::Refused(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_change_without_an_outcome_is_said_to_be_unknown() {
    let dir = tempfile::tempdir().expect("a directory");
    let (keep, kept) = channel();
    let client = served(dir.path(), move |proposal| {
        let keep = keep.clone();
        std::thread::spawn(move || {
            // As the loop: taken, and then nothing comes from the primary.
            assert!(proposal.take(Duration::from_millis(1)));
            drop(keep.send(proposal));
        });
    });
    let why = refusal(&client);
    assert!(
        why.contains("whether the change was made is not known"),
        "{why}"
    );
    drop(kept);
}

#[test]
fn a_change_that_the_loop_comes_to_too_late_is_not_made() {
    let dir = tempfile::tempdir().expect("a directory");
    let waiting: Arc<Mutex<Vec<Proposal>>> = Arc::default();
    let queue = Arc::clone(&waiting);
    let client = served(dir.path(), move |proposal| {
        queue.lock().expect("lock").push(proposal);
    });
    let why = refusal(&client);
    assert!(why.contains("nothing was changed"), "{why}");
    let late = waiting.lock().expect("lock").pop().expect("it waits");
    assert!(
        !late.take(Duration::ZERO),
        "the loop sees that nobody waits"
    );
}

#[test]
fn an_answer_that_is_cut_off_is_no_outcome() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("control.sock");
    let (to, asked): (_, Receiver<()>) = channel();
    let listener = UnixListener::bind(&path).expect("bound");
    std::thread::spawn(move || {
        let config = Answer::Ok(config());
        let pong = Answer::Ok(Pong {
            host: HostId::new("host-1").expect("id"),
            pid: 1,
            guard_pid: None,
            version: String::new(),
        });
        let lines = [serde_json::to_vec(&pong), serde_json::to_vec(&config)];
        let next = || {
            let (stream, _) = listener.accept().expect("accepted");
            let mut request = String::new();
            let mut reader = BufReader::new(stream);
            reader.read_line(&mut request).expect("a request");
            reader.into_inner()
        };
        for line in lines.into_iter().flatten() {
            let answer = [line.as_slice(), b"\n"].concat();
            next().write_all(&answer).expect("written");
        }
        // The agent dies over the change.
        drop(next());
        let _ = to.send(());
    });
    let client = Client::connect(&path).expect("connected");
    let error = client.change(vec![]).expect_err("no outcome");
    assert!(matches!(error, ClientError::OutcomeUnknown(_)), "{error}");
    asked.recv_timeout(CLIENT_TIMEOUT).expect("it was asked");
}
