//! The isolation addresses of a host may change while its agent runs.

use mainstay_core::config::{ClusterConfig, HostSpec, Settings};
use mainstay_core::event::IssueCause;
use mainstay_core::id::{BootId, HostId, InstanceId, OpId};
use mainstay_core::io::{Durable, Input, Output, PingOutcome, PingTarget};
use mainstay_core::time::Instant;
use mainstay_core::{Agent, Identity};

fn host(n: u32) -> HostId {
    HostId::new(&format!("host-{n}")).expect("id")
}

/// One of two hosts; the other one is never heard.
fn agent() -> Agent {
    let spec = |n| HostSpec {
        id: host(n),
        cpu_mhz: 1000,
        memory_mb: 1024,
        datastores: Default::default(),
        maintenance: false,
        networks: Default::default(),
    };
    let hosts = vec![spec(1), spec(2)];
    let config = ClusterConfig::new(1, Settings::default(), hosts, vec![], vec![], vec![]);
    let identity = Identity {
        host: host(1),
        boot: BootId(1),
        instance: InstanceId(1),
        seed: 1,
    };
    let config = config.expect("sound");
    Agent::new(identity, config, Durable::default(), vec![], at(0)).expect("agent")
}

fn at(ms: u64) -> Instant {
    Instant::from_nanos(1_000_000_000 + ms * 1_000_000)
}

/// Goes on until an isolation address is pinged: when, and by which request.
fn next_ping(agent: &mut Agent, from: Instant) -> (Instant, OpId) {
    let mut now = from;
    for _ in 0..1000 {
        while let Some(output) = agent.poll_output() {
            if let Output::Ping(op, PingTarget::Isolation(_)) = output {
                while agent.poll_output().is_some() {}
                return (now, op);
            }
        }
        now = agent.poll_timeout().expect("a timer").max(now);
        agent.handle(now, Input::Timeout);
    }
    panic!("no isolation address is pinged");
}

fn has_none(agent: &Agent) -> bool {
    let issues = agent.issues(at(0));
    let mut causes = issues.iter().map(|i| i.cause);
    causes.any(|c| c == IssueCause::NoIsolationAddress)
}

#[test]
fn an_address_that_comes_later_is_pinged_and_ends_the_weakness() {
    let mut agent = agent();
    agent.set_isolation_addresses(vec![]);
    assert!(has_none(&agent));
    while agent.poll_output().is_some() {}
    agent.set_isolation_addresses(vec!["192.0.2.1".into()]);
    assert!(!has_none(&agent));
    next_ping(&mut agent, at(0));
}

#[test]
fn a_ping_that_was_under_way_says_nothing_of_the_address_in_its_place() {
    let mut agent = agent();
    agent.set_isolation_addresses(vec!["192.0.2.1".into()]);
    let (now, old) = next_ping(&mut agent, at(0));
    agent.set_isolation_addresses(vec!["192.0.2.2".into()]);
    agent.handle(now, Input::Pinged(old, PingOutcome::NoAnswer));
    while agent.poll_output().is_some() {}
    let status = agent.status(now).expect("status");
    let stale = |(what, n): &(String, u64)| what == "stale ping" && *n == 1;
    assert!(status.ignored.iter().any(stale), "{:?}", status.ignored);
    let (_, new) = next_ping(&mut agent, now);
    assert_ne!(new, old, "the new address is asked itself");
}
