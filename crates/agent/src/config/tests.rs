use super::*;
use std::net::SocketAddr;

const CLUSTER: &str = r#"
cluster_id = "00000000000000ab"
isolation_addresses = ["10.99.0.254"]

[settings]
max_restart_attempts = 3
freeze = "2900ms"
profile = "balanced"
host_monitoring = true

[[datastore]]
id = "ds-1"
fence = "enforced"

[[host]]
id = "host-1"
address = "10.99.0.1:7777"
cpu_mhz = 4000
memory_mb = 4096

[[host]]
id = "host-2"
addresses = ["10.99.0.2:7777", "10.98.0.2:7777"]
cpu_mhz = 4000
memory_mb = 4096
datastores = ["ds-1"]

[[vm]]
id = "vm-1"
datastore = "ds-1"
cpu_mhz = 100
memory_mb = 64
image = "vm-1/disk.raw"
"#;

fn read(text: &str) -> Result<ClusterFile, FileError> {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("cluster.toml");
    std::fs::write(&path, text).expect("write");
    ClusterFile::read(&path)
}

fn refusal(text: &str) -> String {
    let error = read(text)
        .and_then(|f| f.cluster_config().map(|_| ()))
        .expect_err("refused");
    error.to_string()
}

#[test]
fn a_cluster_file_gives_the_cores_configuration() {
    let config = read(CLUSTER)
        .and_then(|f| f.cluster_config())
        .expect("sound");
    assert_eq!(config.cluster_id, 0xab);
    assert_eq!(config.settings.max_restart_attempts, 3);
    assert_eq!(
        config.settings.timing.freeze.as_millis(),
        2900,
        "the profile does not undo a timer"
    );
    let host = config.hosts.values().next().expect("host");
    assert_eq!(
        host.datastores.len(),
        1,
        "a host mounts all datastores by default"
    );
}

#[test]
fn a_file_that_was_written_reads_the_same() {
    let file = read(CLUSTER).expect("sound");
    let text = toml::to_string(&file).expect("text");
    assert_eq!(read(&text).expect("sound"), file);
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_key() {
    let text = refusal(&CLUSTER.replace("isolation_addresses", "isolation_adresses"));
    assert!(text.contains("cluster.toml:3:"), "{text}");
    assert!(
        text.contains("did you mean \"isolation_addresses\"?"),
        "{text}"
    );
}

#[test]
fn an_unknown_setting_is_named_with_its_line_and_the_nearest_setting() {
    let text = refusal(&CLUSTER.replace("freeze =", "freez ="));
    assert!(text.contains("cluster.toml:7:"), "{text}");
    assert!(text.contains("did you mean \"freeze\"?"), "{text}");
}

#[test]
fn contradictory_timers_are_refused_with_the_inequality() {
    let text = refusal(&CLUSTER.replace("2900ms", "5s"));
    assert!(text.contains("break x (1 - drift)"), "{text}");
}

#[test]
fn duplicate_hosts_are_refused_with_the_line_of_the_second() {
    let text = refusal(&CLUSTER.replace("\"host-2\"", "\"host-1\""));
    assert!(text.contains("cluster.toml:22:"), "{text}");
    assert!(text.contains("host \"host-1\" is there twice"), "{text}");
}

#[test]
fn one_address_for_two_hosts_is_refused() {
    let text = refusal(&CLUSTER.replace("10.98.0.2", "10.99.0.1"));
    assert!(
        text.contains("both have the address 10.99.0.1:7777"),
        "{text}"
    );
}

#[test]
fn an_image_outside_its_datastore_is_refused() {
    let text = refusal(&CLUSTER.replace("vm-1/disk.raw", "../disk.raw"));
    assert!(text.contains("not inside its datastore"), "{text}");
}

#[test]
fn a_cluster_id_has_sixteen_digits() {
    let text = refusal(&CLUSTER.replace("00000000000000ab", "ab"));
    assert!(text.contains("16 hexadecimal digits"), "{text}");
}

const AGENT: &str = r#"
host = "host-1"
cluster = "cluster.toml"
state_dir = "state"
run_dir = "/run/x"
log_dir = "log"
key_file = "key"
ca_file = "ca.pem"
cert_file = "cert.pem"
cert_key_file = "cert.key"
probe = { udp = { port = 7790 } }

[datastores]
ds-1 = "/mnt/ds-1"
"#;

fn agent(text: &str) -> Result<AgentFile, FileError> {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, text).expect("write");
    AgentFile::read(&path)
}

#[test]
fn an_agent_file_has_absolute_paths_and_survives_writing() {
    let file = agent(AGENT).expect("sound");
    assert!(file.state_dir.is_absolute());
    assert_eq!(file.run_dir, Path::new("/run/x"));
    assert_eq!(file.probe, Probe::Udp { port: 7790 });
    let text = toml::to_string(&file).expect("text");
    assert_eq!(agent(&text).expect("sound"), file);
}

#[test]
fn a_host_that_is_no_member_and_a_mount_without_a_path_are_refused() {
    let config = read(CLUSTER)
        .and_then(|f| f.cluster_config())
        .expect("sound");
    let path = Path::new("agent.toml");
    let other = agent(&AGENT.replace("host-1", "hots-1")).expect("sound");
    let text = other
        .check_against(path, &config)
        .expect_err("no member")
        .to_string();
    assert!(text.contains("did you mean \"host-1\"?"), "{text}");
    let none = agent(&AGENT.replace("ds-1 =", "ds-9 =")).expect("sound");
    let text = none
        .check_against(path, &config)
        .expect_err("no mount")
        .to_string();
    assert!(text.contains("no path for it"), "{text}");
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("key");
    ClusterKey::new([7; 32]).write_new(&path).expect("written");
    assert_eq!(ClusterKey::read(&path).expect("key").bytes(), &[7; 32]);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("mode");
    assert!(matches!(
        ClusterKey::read(&path),
        Err(FileError::KeyMode { mode: 0o640, .. })
    ));
}

const BY_NETWORK: &str = r#"networks = { mgmt0 = "10.99.0.1:7777", mgmt1 = "[fd00::1]:7777" }"#;

fn with_networks() -> String {
    CLUSTER.replace("address = \"10.99.0.1:7777\"", BY_NETWORK)
}

#[test]
fn a_host_has_an_address_on_each_named_network() {
    let file = read(&with_networks()).expect("sound");
    let host = file.hosts.first().expect("host");
    let socket = |text: &str| text.parse::<SocketAddr>().expect("address");
    assert_eq!(
        host.by_network(),
        [
            ("mgmt0".to_owned(), socket("10.99.0.1:7777")),
            ("mgmt1".to_owned(), socket("[fd00::1]:7777")),
        ]
    );
    let config = file.cluster_config().expect("sound");
    for spec in config.hosts.values() {
        // Unnamed addresses are on mgmt0 and mgmt1 in their order.
        assert!(spec.networks.iter().eq(["mgmt0", "mgmt1"]), "{spec:?}");
    }
    let text = toml::to_string(&file).expect("text");
    assert_eq!(read(&text).expect("sound"), file);
}

#[test]
fn a_host_name_is_refused_wherever_an_address_belongs() {
    for (address, name, line) in [
        ("10.99.0.1:7777", "esx1.example:7777", 17),
        ("10.98.0.2:7777", "localhost:7777", 23),
        ("10.99.0.254", "gateway.example", 3),
    ] {
        let text = refusal(&CLUSTER.replace(address, name));
        assert!(text.contains(&format!("cluster.toml:{line}:")), "{text}");
        assert!(
            text.contains(&format!("\"{name}\" is no IP address")),
            "{text}"
        );
        assert!(text.contains("does not depend on DNS"), "{text}");
    }
    let text = refusal(&with_networks().replace("[fd00::1]", "esx1"));
    assert!(text.contains("cluster.toml:17:"), "{text}");
    assert!(text.contains("does not depend on DNS"), "{text}");
}

#[test]
fn networks_that_make_no_sense_are_refused() {
    let both = format!("{BY_NETWORK}\naddress = \"10.97.0.1:7777\"");
    for (networks, wanted) in [
        (both.as_str(), "networks beside address"),
        ("networks = {}", "has no address"),
        (
            "networks = { \"a b\" = \"10.99.0.1:7777\" }",
            "no name for a network",
        ),
        (
            "networks = { a = \"10.99.0.1:1\", b = \"10.99.0.1:2\" }",
            "on two networks",
        ),
    ] {
        let text = refusal(&CLUSTER.replace("address = \"10.99.0.1:7777\"", networks));
        assert!(text.contains(wanted), "{text}");
        assert!(text.contains("cluster.toml:16:"), "{text}");
    }
}

#[test]
fn more_than_ten_isolation_addresses_are_refused_wherever_they_stand() {
    let list = |n: u8| {
        let all: Vec<String> = (1..=n).map(|i| format!("10.0.0.{i}")).collect();
        all.join(",")
    };
    let with = |n| {
        let line = format!("[settings]\nisolation_addresses = \"{}\"", list(n));
        CLUSTER.replace("[settings]", &line)
    };
    let nine = read(&with(9)).and_then(|f| f.cluster_config());
    assert_eq!(nine.expect("sound").settings.isolation_addresses.len(), 9);
    let text = refusal(&with(10));
    assert!(text.contains("names 11 addresses"), "{text}");
    let text = refusal(&with(11));
    assert!(text.contains("up to ten"), "{text}");
}

#[test]
fn what_was_changed_while_the_cluster_ran_is_written_as_a_file_that_says_the_same() {
    use mainstay_core::config::{Change, Image, Places};
    use mainstay_core::id::{HostId, VmId};
    use std::net::SocketAddr;
    let file = read(CLUSTER).expect("sound");
    let began = file.cluster_config().expect("sound");
    let like = |id| began.hosts.get(&HostId::new(id).expect("id")).cloned();
    let mut host = like("host-2").expect("host");
    host.id = HostId::new("host-3").expect("id");
    let mut vm = began.vms.values().next().cloned().expect("VM");
    vm.id = VmId::new("vm-2").expect("id");
    let at = |text: &str| text.parse::<SocketAddr>().expect("address");
    let now = began
        .with(&[
            Change::AddHost {
                spec: host,
                addresses: [("mgmt1".to_owned(), at("[fd00::3]:7777"))].into(),
            },
            Change::AddVm {
                spec: vm,
                image: Image {
                    path: "vm-2.raw".into(),
                    driver: Some("qemu".into()),
                },
            },
            Change::RemoveVm(VmId::new("vm-1").expect("id")),
            Change::Set {
                key: "election".into(),
                value: "3s".into(),
            },
        ])
        .expect("sound");
    let written = toml::to_string(&file.in_force(&now)).expect("text");
    let again = read(&written).expect("sound");
    let mut same = again.cluster_config().expect("sound");
    same.version = now.version;
    same.places = now.places.clone();
    assert_eq!(same, now, "{written}");
    assert_eq!(again.isolation_addresses, file.isolation_addresses);
    let addresses: Vec<_> = again.hosts.iter().map(HostEntry::by_network).collect();
    let on = |network: &str, address: &str| (network.to_owned(), at(address));
    assert_eq!(
        addresses,
        [
            vec![on("mgmt0", "10.99.0.1:7777")],
            vec![on("mgmt0", "10.99.0.2:7777"), on("mgmt1", "10.98.0.2:7777")],
            vec![on("mgmt1", "[fd00::3]:7777")],
        ]
    );
    let vm = again.vms.first().expect("VM");
    assert_eq!(vm.image, Path::new("vm-2.raw"));
    assert_eq!(vm.driver, Some(DriverKind::Qemu));
    assert_ne!(now.places, Places::default());
}
