use super::*;
use crate::config::mistake::Place;
use proptest::prelude::*;

fn projects(text: &str, env: Env) -> Result<(Projects, Vec<String>), String> {
    let (projects, mistakes, warnings) = parse(text, env, &Limits::default());
    match mistakes.first() {
        Some(first) => Err(first.clone()),
        None => Ok((projects, warnings)),
    }
}

/// Returns the projects, the mistakes and the warnings, with their lines but without columns.
fn parse(text: &str, env: Env, limits: &Limits) -> (Projects, Vec<String>, Vec<String>) {
    let mut warnings = Vec::new();
    let mut notes = Notes { mistakes: Vec::new(), warnings: &mut warnings };
    let file = ProjectsFile { text: FileText::new("p.toml", text), limits, env };
    let projects = file.parse(&mut notes);
    let shown = |mistake: &Mistake| match &mistake.place {
        Some(Place { file, line, .. }) => format!("{file}, line {line}: {}", mistake.what),
        None => mistake.what.clone(),
    };
    let mistakes = notes.mistakes.iter().map(shown).collect();
    (projects, mistakes, warnings.iter().map(shown).collect())
}

#[test]
fn a_whole_projects_file() {
    let text = "[[project]]\npid = \"1\"\nsecrets = [\"new-random-secret\", \
                \"old-random-secret\"]\n\n[[project]]\npid = \"shop.eu\"\n\
                secrets = [\"dev-secret\"]\nallowed_origins = \
                [\"https://a.example\", \
                \"http://localhost:3000\", \"http://[::1]:8080\", \"null\", \"*\", \
                \"app+x://host\"]\nsubscribe = \"signed\"\n";
    let (projects, warnings) = projects(text, Env::Dev).unwrap();
    assert!(warnings.is_empty());
    let (_, first) = projects.find("1").unwrap();
    assert_eq!((first.secrets.len(), first.subscribe), (2, SubscribePolicy::Any));
    let (_, shop) = projects.find("shop.eu").unwrap();
    assert_eq!(shop.subscribe, SubscribePolicy::Signed);
    assert_eq!(shop.allowed_origins.as_ref().unwrap().len(), 6);
}

#[test]
fn a_wrong_projects_file_names_the_line_the_value_and_the_fix() {
    let head = "[[project]]\npid = 'a'\n";
    let full = "[[project]]\npid = 'a'\nsecrets = ['s']\n";
    for (text, wanted) in [
        (String::new(), "p.toml, line 1: the file contains no project: add at least"),
        ("# nothing\n".into(), "p.toml, line 1: the file contains no project"),
        (format!("{full}{full}"), "p.toml, line 4: pid 'a' is already used on line 1"),
        (format!("{head}secrets = []\n"), "p.toml, line 3: secrets of project 'a' is emp"),
        (
            format!("{head}secrets = ['x', '']\n"),
            "p.toml, line 3: secret 2 of project 'a' is empty: use",
        ),
        (
            format!("{head}secrets = ['x', 'x']\n"),
            "p.toml, line 3: secret 2 of project 'a' is given twice",
        ),
        (format!("{head}secrets = [7]\n"), "p.toml, line 3: secret 1 of project 'a' is no"),
        (
            format!("{head}secrets = [\n  'x',\n  \"s\\n\",\n]\n"),
            "p.toml, line 5: secret 2 of project 'a' ends in a newline",
        ),
        (
            format!("{head}secrets = ['                    ']\n"),
            "p.toml, line 3: secret 1 of project 'a' begins or ends with white",
        ),
        (
            format!("{head}secrets = [\"\\n0123456789abcdef\"]\n"),
            "p.toml, line 3: secret 1 of project 'a' begins or ends with white",
        ),
        (
            full.replace("[[project]]", "[project]"),
            "p.toml, line 1: [project] is a single table: write [[project]], with two brackets",
        ),
        (
            format!("{full}{full}").replace("[[project]]", "[project]"),
            "p.toml, line 4: [project] is a single table: write [[project]], with two brackets",
        ),
    ] {
        assert_refused(&text, wanted);
    }
}

fn assert_refused(text: &str, wanted: &str) {
    let error = projects(text, Env::Dev).unwrap_err();
    assert!(error.starts_with(wanted), "{error}\n{wanted}");
}

#[test]
fn values_of_another_type_and_unknown_keys_are_refused_with_their_line() {
    let head = "[[project]]\npid = 'a'\n";
    let full = "[[project]]\npid = 'a'\nsecrets = ['s']\n";
    for (text, wanted) in [
        ("\nproject = 1\n".into(), "p.toml, line 2: project must be a list of tables: wr"),
        ("project = [1]\n".into(), "p.toml, line 1: project must be a list of tables: wr"),
        (
            format!("{full}allowed_origins = '*'\n"),
            "p.toml, line 4: allowed_origins of project \
         'a' is not a list: write",
        ),
        (
            format!("{full}allowed_origins = [1]\n"),
            "p.toml, line 4: allowed_origins of project 'a': an origin is a string",
        ),
        (format!("{full}subscribe = 1\n"), "p.toml, line 4: subscribe of project 'a' is not a str"),
        (head.into(), "p.toml, line 1: project 'a' has no secrets: add"),
        ("\n[[project]]\nsecrets = ['s']\n".into(), "p.toml, line 2: the project has no p"),
        (
            full.replace("'a'", "'a b'"),
            "p.toml, line 2: pid 'a b' is not a project id: use 1 to 64 (--max",
        ),
        (full.replace("'a'", "''"), "p.toml, line 2: pid '' is not a project id"),
        (
            full.replace("'a'", "1"),
            "p.toml, line 2: pid = 1 is a number: put it in quotes, pid = \"1\"",
        ),
        (full.replace("'a'", "[]"), "p.toml, line 2: pid is not a string: put it in quotes"),
        (
            format!("{full}subscribe = 'all'\n"),
            "p.toml, line 4: subscribe 'all' of project 'a' is unknown: use \"any\"",
        ),
        (
            format!("{full}secret = 's'\n"),
            "p.toml, line 4: unknown key \"secret\"; did you mean \"secrets\"?",
        ),
        (
            format!("[projects]\n{full}"),
            "p.toml, line 1: unknown key \"projects\"; did you mean \"project\"?",
        ),
        ("[[project]]\npid = 'a'\nx = 1\n".into(), "p.toml, line 3: unknown key \"x\"; kn"),
        (format!("{full}x = \n"), "p.toml, line 4: "),
    ] {
        assert_refused(&text, wanted);
    }
}

#[test]
fn prod_refuses_secrets_that_can_be_guessed_and_others_warn() {
    let of = |secret: &str| format!("[[project]]\npid = 'a'\nsecrets = ['{secret}']\n");
    let short = projects(&of("fifteen--bytes-"), Env::Prod).unwrap_err();
    assert!(short.contains("p.toml, line 3: secret 1 of project 'a' has only 15"), "{short}");
    let published = projects(&of(DEV_SECRET), Env::Prod).unwrap_err();
    assert!(published.contains("line 3: secret 1 of project 'a' is the publ"), "{published}");
    let (_, warnings) = projects(&of("sixteen--bytes--"), Env::Prod).unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("allowed_origins"));
    for env in [Env::Dev, Env::Test] {
        let (_, warnings) = projects(&of("short"), env).unwrap();
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].starts_with("p.toml, line 3: secret 1 of project 'a' has only 5"));
        let both = of("sixteen--bytes--") + &of("sixteen--bytes--").replace("'a'", "'b'");
        let (_, warnings) = projects(&both, env).unwrap();
        let shared =
            "line 6: secret 1 of project 'b' is also that of project 'a' on line 3: whoever";
        assert!(warnings.len() == 1 && warnings[0].contains(shared), "{warnings:?}");
        let refused = projects(&both, Env::Prod).unwrap_err();
        assert!(refused.contains(shared), "{refused}");
        // This one is public: it is nobody's secret.
        let both = of(DEV_SECRET) + &of(DEV_SECRET).replace("'a'", "'b'");
        assert!(projects(&both, env).unwrap().1.is_empty());
    }
}

#[test]
fn a_pid_is_bounded() {
    let text = format!("[[project]]\npid = '{}'\nsecrets = ['s']\n", "p".repeat(65));
    let parsed = |pid_bytes| {
        let limits = Limits { pid_bytes, ..Limits::default() };
        parse(&text, Env::Dev, &limits)
    };
    assert_eq!(parsed(65).0.len(), 1);
    assert!(parsed(64).1[0].contains("use 1 to 64 (--max_pid_bytes) of the char"));
}

#[test]
fn malformed_origins() {
    for (bad, fix) in [
        ("a.example", "use scheme://host"),
        ("://a.example", "use scheme://host"),
        ("", "use scheme://host"),
        ("https://a.example/", "omit the slash and the path"),
        ("https://a.example/x", "omit the slash and the path"),
        ("https://A.example", "write it in lower case"),
        ("https://bücher.example", "write the host in its xn-- form"),
        ("https://*.example", "use a host name without wildcards"),
        ("https://", "use a host name"),
        ("https://u@a.example", "use a host name"),
        ("https://[::g]", "use a host name"),
        ("https://a.example:443", "omit the default port"),
        ("http://a.example:80", "omit the default port"),
        ("https://a.example:", "use a port from 1 to 65535"),
        ("https://a.example:65536", "use a port from 1 to 65535"),
    ] {
        let text =
            format!("[[project]]\npid='a'\nsecrets=['s']\nallowed_origins = [\n'*',\n'{bad}']\n");
        let error = projects(&text, Env::Dev).unwrap_err();
        let wanted = format!(
            "p.toml, line 6: allowed_origins of project 'a': '{bad}' is not an origin: {fix}"
        );
        assert!(error.starts_with(&wanted), "{error}\n{wanted}");
    }
}

/// A parser's error quotes the offending text, which would put a secret into the log.
#[test]
fn no_error_shows_a_secret() {
    for text in [
        "[[project]]\npid='a'\nsecrets='hunter2'\n",
        "[[project]]\npid='a'\nsecrets=[hunter2]\n",
        "[[project]]\npid='a'\nsecrets=['hunter2' x]\n",
        "[[project]]\npid='a'\nsecrets={new='hunter2'}\n",
        "[[project]]\npid='a'\nsecrets=['hunter2', 'hunter2']\n",
        "[[project]]\npid='a'\nsecrets=['hunter2\n",
    ] {
        let error = projects(text, Env::Dev).unwrap_err();
        assert!(error.contains("p.toml, line 3"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

/// One quote too few used to be reported as 16 mistakes, in all projects behind it.
#[test]
fn what_is_not_toml_hides_no_mistake_behind_it_and_makes_none_up() {
    let text = "[[project]]\npid = 'a'\nsecrets = ['hunter2\n\n[[project]]\npid = 'b'\n\
                secrets = ['hunter3', 'hunter3']\n[[project]\npid = 'c'\n[[project]]\n\
                pid = 'b'\nsecrets = ['hunter4']\n";
    let (projects, mistakes, _) = parse(text, Env::Dev, &Limits::default());
    let starts = [
        "p.toml, line 3: ",
        "p.toml, line 7: secret 2 of project 'b' is given twice",
        "p.toml, line 8: ",
    ];
    assert_eq!((projects.len(), mistakes.len()), (1, starts.len()), "{mistakes:?}");
    for (mistake, start) in mistakes.iter().zip(starts) {
        assert!(mistake.starts_with(start) && !mistake.contains("hunter"), "{mistake}");
    }
    // Each section is TOML, but not all of them together.
    let (_, mistakes, _) =
        parse("project = []\n[[project]]\npid='a'\n", Env::Dev, &Limits::default());
    assert!(!mistakes.is_empty(), "{mistakes:?}");
}

proptest! {
    #[test]
    fn any_text_is_read_without_a_panic_and_places_are_in_it(
        text in "(\\[\\[project\\]\\]\n|pid = |secrets = |[a-z='\"\\[\\],{}.0-9\n #é]){0,40}",
    ) {
        let mut warnings = Vec::new();
        let mut notes = Notes { mistakes: Vec::new(), warnings: &mut warnings };
        let (limits, env) = (Limits::default(), Env::Prod);
        let file = ProjectsFile { text: FileText::new("p", &text), limits: &limits, env };
        let projects = file.parse(&mut notes);
        prop_assert!(!projects.is_empty() || !notes.mistakes.is_empty());
        for place in notes.mistakes.iter().filter_map(|mistake| mistake.place.as_ref()) {
            prop_assert!((1..=1 + text.matches('\n').count()).contains(&place.line));
        }
    }
}
