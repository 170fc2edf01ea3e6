//! Brokers by URL: `kafka://host:port[,host:port]`, `kafka+tls://user:password@host:port?property=value`.

use crate::{config::Connection, error::KafkaError};

/// What a URL says. Errors never repeat the URL: it may hold a password.
pub(crate) fn parse(url: &str) -> Result<Connection, KafkaError> {
    let (scheme, rest) = url
        .split_once("://")
        .ok_or_else(|| KafkaError::config("a kafka URL starts with `kafka://` or `kafka+tls://`"))?;
    let tls = match scheme {
        "kafka" => false,
        "kafka+tls" => true,
        // Not shown: what stands in front of a mistyped URL may be a password.
        _ => return Err(KafkaError::config("a kafka URL starts with `kafka://` or `kafka+tls://`")),
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    // A password may hold an `@` that was not encoded: hosts cannot.
    let (user, hosts) = match rest.rsplit_once('@') {
        Some((user, hosts)) => (Some(user), hosts),
        None => (None, rest),
    };
    let hosts = hosts.strip_suffix('/').unwrap_or(hosts);
    check_hosts(hosts)?;
    let mut connection = Connection::new(hosts);
    if let Some(user) = user {
        let (user, password) = user
            .split_once(':')
            .ok_or_else(|| KafkaError::config("the kafka URL has a user but no password"))?;
        connection.put("sasl.username", decode(user, "user")?);
        connection.put("sasl.password", decode(password, "password")?);
        connection.put("sasl.mechanism", "PLAIN");
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            KafkaError::config("a query parameter of the kafka URL has no value: write `?property=value`")
        })?;
        let name = decode(name, "name of a query parameter")?;
        let value = decode(value, &format!("value of `{name}`"))?;
        if name == "security.protocol" {
            return Err(KafkaError::config(
                "the scheme and the user of a kafka URL say which `security.protocol` it is: `kafka+tls://` is TLS, a \
                 user or a `sasl.` property is SASL",
            ));
        }
        connection.put(name, value);
    }
    let sasl = connection.names().any(|name| name.starts_with("sasl."));
    let protocol = match (sasl, tls) {
        (false, false) => "PLAINTEXT",
        (false, true) => "SSL",
        (true, false) => "SASL_PLAINTEXT",
        (true, true) => "SASL_SSL",
    };
    if protocol != "PLAINTEXT" {
        connection.put("security.protocol", protocol);
    }
    Ok(connection)
}

pub(crate) fn check_hosts(hosts: &str) -> Result<(), KafkaError> {
    if hosts.split(',').any(|host| host.trim().is_empty()) {
        return Err(KafkaError::config("no kafka broker is named: write `host:port[,host:port]`"));
    }
    for host in hosts.split(',') {
        if host.contains(['/', '@', '?', '#']) || host.chars().any(char::is_whitespace) {
            return Err(KafkaError::config(
                "a kafka broker is named as `host:port`, without a path; in a user or password `/`, `?` and `#` are \
                 written as `%2F`, `%3F` and `%23`",
            ));
        }
        let port = match host.rsplit_once(':') {
            Some((_, port)) if !port.ends_with(']') => port,
            _ => continue,
        };
        if port.parse::<u16>().is_err() {
            // Not shown: with a `?` in a password it would be a part of that.
            return Err(KafkaError::config("the port of a kafka broker is not a number below 65536"));
        }
    }
    Ok(())
}

fn decode(text: &str, what: &str) -> Result<String, KafkaError> {
    let wrong = || KafkaError::config(format!("the {what} in the kafka URL is not percent-encoded UTF-8"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok()).ok_or_else(wrong)?;
        // A sign is a digit to the parser.
        let digits = hex.bytes().all(|digit| digit.is_ascii_hexdigit());
        bytes.push(u8::from_str_radix(hex, 16).ok().filter(|_| digits).ok_or_else(wrong)?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_only() {
        let connection = parse("kafka://a:9092,b:9093").unwrap();
        assert_eq!(connection.brokers(), "a:9092,b:9093");
        assert_eq!(connection.get("security.protocol"), None);
    }

    #[test]
    fn user_password_and_properties() {
        let connection =
            parse("kafka+tls://ann:p%40s%3As@h:9092?sasl.mechanism=SCRAM-SHA-256&ssl.ca.location=%2Fca.pem")
                .unwrap();
        assert_eq!(connection.brokers(), "h:9092");
        assert_eq!(connection.get("security.protocol"), Some("SASL_SSL"));
        assert_eq!(connection.get("sasl.username"), Some("ann"));
        assert_eq!(connection.get("sasl.password"), Some("p@s:s"));
        assert_eq!(connection.get("sasl.mechanism"), Some("SCRAM-SHA-256"));
        assert_eq!(connection.get("ssl.ca.location"), Some("/ca.pem"));
    }

    #[test]
    fn the_url_says_how_the_connection_is_secured() {
        let protocol = |url| parse(url).unwrap().get("security.protocol").map(str::to_owned);
        assert_eq!(protocol("kafka+tls://h:1").as_deref(), Some("SSL"));
        assert_eq!(protocol("kafka://ann:x@h:1").as_deref(), Some("SASL_PLAINTEXT"));
        assert_eq!(protocol("kafka+tls://h:1?sasl.mechanism=OAUTHBEARER").as_deref(), Some("SASL_SSL"));
        let error = parse("kafka+tls://h:1?security.protocol=PLAINTEXT").unwrap_err();
        assert!(error.is_config() && error.to_string().contains("security.protocol"));
        let connection = parse("kafka://ann:x@h:1?sasl.mechanisms=SCRAM-SHA-512").unwrap();
        assert_eq!(connection.get("sasl.mechanism"), Some("SCRAM-SHA-512"));
    }

    #[test]
    fn mistakes_are_told_without_the_password() {
        for url in [
            "amqp://ann:s3cret@h",
            "ann:s3cret@kafka://h",
            "ann:s3cret@h",
            "kafka://ann:s3cret@",
            "kafka://ann:s3cret@h:port",
            "kafka://ann:s3cret%@h:1",
            "kafka://ann:s3cret%+f@h:1",
            "s3cret://h:1",
            "kafka://s3cret@h:1",
            "kafka://ann:s3cret@h:1/topic",
            "kafka://ann:s3cret/x@h:1?x",
            "kafka://ann:s3cret?x@h:1",
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.is_config(), "{url}");
            assert!(!format!("{error:?} {error}").contains("s3cret"), "{error:?}");
        }
    }

    #[test]
    fn an_address_of_version_6_has_its_brackets() {
        assert!(parse("kafka://[::1]:9092").is_ok());
        assert!(parse("kafka://[::1]").is_ok());
    }
}
