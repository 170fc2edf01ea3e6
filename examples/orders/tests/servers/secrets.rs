//! Nothing that the programs print, at the finest level of all that they are made of, shows a password.

use std::{
    fmt::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use xtask::servers::{Certificates, Kafka, RabbitMq, Redis, free_port};

use crate::common::{Done, Folder, Running, orders};

/// Passwords with characters that are escaped in URLs, and their names in what a failure shows.
const BROKER: &str = "Br0ker+Passw/rd";
const REDIS: &str = "Red1sPassw0rd";
#[cfg(feature = "postgres")]
const POSTGRES: &str = "P0stgresPassw0rd";
const WRONG: &str = "Wr0ngPassw0rd";

fn encoded(password: &str) -> String {
    password.replace('+', "%2B").replace('/', "%2F")
}

/// How a password may show: plain, in a URL, as bytes in decimal or hex, and inside of something in base64.
fn shapes(password: &str) -> Vec<String> {
    let bytes = password.as_bytes();
    let joined = |separator: &str, one: &dyn Fn(u8) -> String| {
        bytes.iter().map(|byte| one(*byte)).collect::<Vec<_>>().join(separator)
    };
    let mut shapes = vec![
        password.to_owned(),
        encoded(password),
        joined(", ", &|byte| byte.to_string()),
        joined("", &|byte| format!("{byte:02x}")),
        joined(" ", &|byte| format!("{byte:02x}")),
    ];
    // Wherever it begins there, what lies wholly inside of it is the same.
    for skipped in 0..3 {
        let whole = &bytes[skipped..];
        shapes.push(base64(&whole[..whole.len() / 3 * 3]));
    }
    shapes
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks_exact(3) {
        let bits = u32::from(three[0]) << 16 | u32::from(three[1]) << 8 | u32::from(three[2]);
        for digit in [18, 12, 6, 0] {
            text.push(char::from(DIGITS[(bits >> digit & 63) as usize]));
        }
    }
    text
}

/// All that was printed.
#[derive(Default)]
struct Output(String);

impl Output {
    /// Runs a program to its end, everything logged, and keeps what it printed.
    fn of(&mut self, command: &mut Command) -> Done {
        let done = Running::start(command.env("RUST_LOG", "trace")).wait();
        write!(self.0, "{}{}", done.stdout, done.stderr).unwrap();
        done
    }

    #[track_caller]
    fn shows_none_of(&self, passwords: &[&str]) {
        for password in passwords {
            for shape in shapes(password) {
                let shown = self.0.lines().find(|line| line.contains(&shape));
                assert_eq!(shown, None, "it shows {password} as {shape}");
            }
        }
    }

    /// So that it is known to be in the log what the driver has to say.
    #[track_caller]
    fn has_lines_of(&self, target: &str) {
        assert!(self.0.contains(&format!(" {target}")), "nothing of {target} is in the log");
    }
}

fn admin(command: &str, broker: &str) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_orders")).with_file_name("consumer-admin");
    assert!(program.exists(), "build it first: cargo build -p consumer-admin");
    let mut admin = Command::new(program);
    admin
        .args(["dead-letters", command, "--from", "orders.placed.dead"])
        .env_clear()
        .env("BROKER_URL", broker);
    if command == "redrive" {
        admin.arg("--yes");
    }
    admin.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    admin
}

fn produce(broker: &str) -> Command {
    let mut produce = orders(["produce", "--count", "20", "--bouncing", "0.2"]);
    produce.env("BROKER_URL", broker);
    produce
}

fn consume(broker: &str, store: &str, folder: &Folder) -> Command {
    let mut consume = orders(["consume", "--attempts", "1", "--until-idle", "5s", "--delays", "100ms"]);
    consume.env("BROKER_URL", broker).env("STORE_URL", store).env("MAIL_LOG", folder.path("mails.jsonl"));
    consume
}

/// All goes well; then each thing goes wrong that a password is near to.
fn run(output: &mut Output, broker: &str, authority: &str) {
    let redis = Redis::builder().password(REDIS).tls().start().unwrap();
    let file = redis.certificates().unwrap().authority();
    let store = format!("{}?cacertfile={}", redis.url(), file.display());
    let folder = Folder::new();
    output.of(&mut produce(broker)).ok();
    let consumed = output.of(&mut consume(broker, &store, &folder)).ok();
    assert_eq!(consumed.number("dead_lettered"), 4, "{}", consumed.stdout);
    output.of(&mut admin("list", broker)).ok();
    output.of(&mut admin("redrive", broker)).ok();
    #[cfg(feature = "postgres")]
    {
        let postgres = xtask::servers::Postgres::builder().password(POSTGRES).tls().start().unwrap();
        output.of(&mut produce(broker)).ok();
        output.of(&mut consume(broker, &postgres.url(), &folder)).ok();
        let wrong = postgres.url().replace(POSTGRES, WRONG);
        assert_eq!(output.of(&mut consume(broker, &wrong, &folder)).code(), Some(1));
        let away = postgres.url().replace(&postgres.port().to_string(), &free_port().unwrap().to_string());
        assert_eq!(output.of(&mut consume(broker, &away, &folder)).code(), Some(1));
    }
    let wrong_store = store.replace(REDIS, WRONG);
    let not_trusted = redis.url();
    let away = store.replace(&redis.port().to_string(), &free_port().unwrap().to_string());
    for store in [wrong_store, not_trusted, away] {
        assert_eq!(output.of(&mut consume(broker, &store, &folder)).code(), Some(1), "{store}");
    }
    let wrong = broker.replace(&encoded(BROKER), WRONG);
    let not_trusted = broker.split(authority).next().unwrap().trim_end_matches(['?', '&']);
    for broker in [&*wrong, not_trusted] {
        for mut command in [produce(broker), consume(broker, &store, &folder), admin("list", broker)] {
            assert_eq!(output.of(&mut command).code(), Some(1), "{broker}");
        }
    }
    // Mistakes of one's own are shown too.
    let mistyped = format!("{broker}&x");
    assert_eq!(output.of(&mut produce(&mistyped)).code(), Some(2), "{mistyped}");
    let mistyped = format!("{store}#x");
    assert_eq!(output.of(&mut consume(broker, &mistyped, &folder)).code(), Some(2), "{mistyped}");
    output.shows_none_of(&[BROKER, REDIS, WRONG]);
    #[cfg(feature = "postgres")]
    output.shows_none_of(&[POSTGRES]);
}

fn path_of_authority(certificates: Option<&Certificates>) -> String {
    certificates.unwrap().authority().display().to_string()
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn no_password_shows_with_kafka() {
    let kafka = Kafka::builder().sasl_plain("ann", BROKER).tls().start().unwrap();
    let authority = format!("ssl.ca.location={}", path_of_authority(kafka.certificates()));
    let broker = format!("kafka+tls://ann:{}@{}?{authority}", encoded(BROKER), kafka.bootstrap());
    let mut output = Output::default();
    run(&mut output, &broker, &authority);
    output.has_lines_of("librdkafka: ");
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn no_password_shows_with_rabbitmq() {
    let rabbitmq = RabbitMq::builder().user("ann", BROKER).tls().start().unwrap();
    let authority = format!("cacertfile={}", path_of_authority(rabbitmq.certificates()));
    let url = format!("amqps://ann:{}@127.0.0.1:{}", encoded(BROKER), rabbitmq.tls_port().unwrap());
    let broker = format!("{url}?{authority}");
    let mut output = Output::default();
    run(&mut output, &broker, &authority);
    output.has_lines_of("lapin::");
}

#[test]
fn a_password_is_found_in_each_shape() {
    for found in [
        format!("at {BROKER}"),
        format!("amqp://ann:{}@h", encoded(BROKER)),
        format!("{:?}", BROKER.as_bytes()),
        base64(format!("\0ann\0{BROKER}xx").as_bytes()),
        base64(format!("ann\0{BROKER}x").as_bytes()),
        base64(format!("ann:\0{BROKER}xx").as_bytes()),
    ] {
        assert!(shapes(BROKER).iter().any(|shape| found.contains(&**shape)), "{found}");
    }
}
