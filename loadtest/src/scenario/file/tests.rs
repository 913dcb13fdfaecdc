use super::*;

const HEAD: &str = "[population]\nconnections = 1000\n";

fn phase(text: &str) -> Result<Scenario, String> {
    parse("s.toml", &format!("{HEAD}[[phase]]\nname = \"a\"\n{text}\n"))
}

fn error_of(text: &str) -> String {
    phase(text).err().unwrap_or_default()
}

#[test]
fn a_whole_scenario() {
    let text = r#"
        [population]
        connections = 2_000
        uid_prefix = "m"
        tags = 10
        tags_per_client = 2
        devices = ["ios", "web"]
        timeout = 60

        [[phase]]
        name = "ramp"
        open = 2000
        open_per_s = 500.5
        hold = 2

        [[phase]]
        name = "storm"
        cut = { share = 0.2, how = "fin" }
        reconnect = { jitter = 1.5, per_s = 100 }
        until = "all back"
        duration = 30
        canaries = { clients = 10 }

        [[phase]]
        name = "end"
        drain = true
    "#;
    let Scenario { population, phases } = parse("s.toml", text).unwrap();
    assert_eq!((population.connections, population.timeout_ns), (2000, Some(60_000_000_000)));
    assert_eq!(population.audience.devices, ["ios", "web"]);
    assert_eq!(phases.len(), 3);
    assert_eq!(phases[0].open, Some(Open { to: 2000, per_s: 500.5 }));
    assert_eq!(phases[0].hold_ns, 2_000_000_000);
    let cut = Cut { count: Count::Share(0.2), how: Closing::Fin };
    assert_eq!(phases[1].cut, Some(cut));
    assert_eq!((phases[1].duration_ns, phases[1].at_most_ns), (0, 30_000_000_000));
    assert_eq!(phases[1].reconnect.unwrap().jitter_ns, 1_500_000_000);
    assert_eq!(phases[1].canaries, Some(Canaries { clients: 10, pushes_per_s: 50.0 }));
    assert!(phases[2].drain);
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_nearest_one() {
    assert_eq!(
        error_of("openn = 5"),
        "s.toml:5:1: unknown key \"openn\" in [[phase]]; did you mean \"open\"?"
    );
    assert_eq!(
        error_of("open = 5\n  cut = { shar = 1 }"),
        "s.toml:6:11: unknown key \"shar\" in cut; did you mean \"share\"?"
    );
    let error = parse("s.toml", "[population]\nconections = 5\n").err().unwrap();
    assert_eq!(
        error,
        "s.toml:2:1: unknown key \"conections\" in population; did you mean \"connections\"?"
    );
    let error = parse("s.toml", "[people]\n").err().unwrap();
    assert!(error.starts_with("s.toml:1:2: unknown key \"people\" in a scenario"), "{error}");
}

#[test]
fn a_wrong_value_is_named_with_its_place_and_what_is_wanted() {
    for (text, wanted) in [
        ("open = -1", "s.toml:5:8: open: -1 is not from 0 to 100000000"),
        (
            "open = \"all\"",
            "s.toml:5:8: open: a whole number, 0 to 100000000, is expected, not str",
        ),
        ("open = 1001", "s.toml:5:8: open: 1001 is above population.connections, 1000"),
        ("open_per_s = 5", "s.toml:5:14: open_per_s: the number of conn"),
        ("duration = 1e9", "s.toml:5:12: duration: 1e9 is not from 0 to 1000000"),
        ("duration = nan", "s.toml:5:12: duration: nan is not from 0 to"),
        ("drain = 1", "s.toml:5:9: drain: true or false is expected, not integer"),
        ("cut = { share = 1.5 }", "s.toml:5:17: share: 1.5 is not from 0 to 1"),
        ("cut = { share = 1, count = 1 }", "s.toml:5:28: count: use share or count, not both"),
        ("cut = {}", "s.toml:5:7: share is missing: add share = 0.2"),
        ("cut = { share = 1, how = \"x\" }", "s.toml:5:26: how: \"x\" must be reset, fin"),
        ("reconnect = \"later\"", "s.toml:5:13: reconnect: must be \"at once\""),
        ("until = \"all gone\"", "s.toml:5:9: until: \"all gone\": the only cond"),
        ("until = \"all back\"", "s.toml:5:9: until: \"all back\" needs cut and reconnect"),
        ("tag_pushes_per_s = 5", "s.toml:5:20: tag_pushes_per_s: there are no tags"),
        ("with_devices = true", "s.toml:5:16: with_devices: there are no devices"),
        ("project_pushes = 5\nproject_pushes_per_s = 1", "s.toml:5:18: project_pushes: these are"),
        ("drain = true\nunicast_per_s = 5", "s.toml:5:9: drain: no traffic"),
        ("churn_per_s = 5", "s.toml:3:1: this phase has no end: add duration = 10"),
        ("open = 5\nopen = 6", "s.toml:6:1: duplicate key"),
        ("open = ", "s.toml:5:"),
        ("open = 5\n[[phase]]\nname = \"a\"\nhold = 1", "s.toml:7:8: name: the name \"a\" is"),
        ("open = 5\n[[phase]]\nname = \"b\"\nopen = 4", "s.toml:8:8: open: 5 are already open"),
        ("drain = true\n[[phase]]\nname = \"b\"\nhold = 4", "s.toml:6:1: no phase can follow"),
    ] {
        let error = error_of(text);
        assert!(error.starts_with(wanted), "{text}: {error}");
    }
    assert!(parse("s.toml", HEAD).err().unwrap().contains("phase is missing"));
    let error = parse("s.toml", "[population]\nconnections=5\n[phase]\n").err().unwrap();
    assert!(error.contains("[[phase]] with two brackets"), "{error}");
    let devices = "[population]\nconnections = 5\ndevices = [\"IOS\"]\n";
    let error = parse("s.toml", devices).err().unwrap();
    assert!(error.starts_with("s.toml:3:11: devices: \"IOS\": a device must"), "{error}");
}

#[test]
fn the_shipped_scenarios_are_right() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(parse(&path.display().to_string(), &text).is_ok(), "{}", path.display());
        count += 1;
    }
    assert!(count >= 3, "{count}");
}
