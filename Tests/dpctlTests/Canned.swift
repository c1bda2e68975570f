import LocalAPI
import Testing

@testable import dpctl

/// Answers as the agent gives them.
enum Canned {
  static func json(_ text: String) throws -> JSONValue { try JSONValue(parsing: text) }

  static func items(_ text: String) throws -> [JSONValue] {
    try #require(try json(text)["items"]?.arrayValue)
  }

  static let policies = """
    {"apiVersion":"sluice.dev/v1","items":[
      {"namespace":"shop","name":"allow-egress","mode":"enforce","directions":["egress"],"inForce":true,
       "pods":["shop/api-1","shop/cart-7d9"],
       "rules":[{"direction":"egress","index":0,"packets":120,"bytes":7200},
                {"direction":"egress","index":1,"packets":3,"bytes":240}],
       "denied":{"ingress":{"packets":0,"bytes":0},"egress":{"packets":2,"bytes":120}},
       "wouldDeny":{"ingress":{"packets":0,"bytes":0},"egress":{"packets":0,"bytes":0}}},
      {"namespace":"shop","name":"watch-db","mode":"audit","directions":["ingress","egress"],"inForce":true,
       "pods":["shop/db-0"],
       "rules":[{"direction":"ingress","index":0,"packets":5,"bytes":300}],
       "denied":{"ingress":{"packets":4,"bytes":244},"egress":{"packets":0,"bytes":0}},
       "wouldDeny":{"ingress":{"packets":7,"bytes":420},"egress":{"packets":0,"bytes":0}}},
      {"namespace":"other","name":"new","mode":"enforce","directions":["ingress"],"inForce":false,"pods":[],"rules":[],
       "denied":{"ingress":{"packets":0,"bytes":0},"egress":{"packets":0,"bytes":0}},
       "wouldDeny":{"ingress":{"packets":0,"bytes":0},"egress":{"packets":0,"bytes":0}}}]}
    """

  static let differences = """
    {"apiVersion":"sluice.dev/v1","differences":[
      {"between":"agent and kernel","kind":"map ip pairs","object":"missing: subject 3, identity 16"},
      {"between":"objects and agent","kind":"policy","object":"shop/deny-db"}]}
    """

  static let identities = """
    {"apiVersion":"sluice.dev/v1","items":[
      {"id":16,"family":"IPv4","kind":"pod","namespace":"shop","labels":["app=api,tier=x"],"addresses":2,"pairs":3},
      {"id":17,"family":"IPv6","kind":"pod","namespace":"shop","labels":["app=api","","app=cart","app=db"],
       "addresses":4,"pairs":1},
      {"id":18,"family":"IPv4","kind":"pod","namespace":"other","labels":[],"addresses":1,"pairs":0},
      {"id":20,"family":"IPv4","kind":"node","namespace":null,"labels":[],"addresses":3,"pairs":0},
      {"id":22,"family":"IPv4","kind":"world","namespace":null,"labels":[],"addresses":4,"pairs":2},
      {"id":25,"family":"IPv6","kind":"unknown","namespace":null,"labels":[],"addresses":1,"pairs":0}]}
    """

  /// An event; members given replace those of a denied TCP packet between two pods.
  static func event(_ changes: JSONObject = [:]) throws -> JSONValue {
    let base = try json(
      """
      {"time":"2026-11-21T12:04:01.221Z","type":"drop","reason":"policy-denied","direction":"egress",
       "source":{"address":"10.1.2.3","port":40122,"pod":"shop/cart-7d9","kind":"pod","identity":16},
       "destination":{"address":"10.1.2.4","port":5432,"pod":"shop/db-0","kind":"pod","identity":18},
       "protocol":"tcp","flags":"SYN","icmpType":null,"length":60,
       "policies":["shop/deny-db"],"rule":null,"isDefaultDeny":true,"interface":"slc0123","revision":412,"lost":22}
      """)
    var object = try #require(base.objectValue)
    for change in changes { object[change.key] = change.value }
    return .object(object)
  }

  static let direct = """
    {"apiVersion":"sluice.dev/v1",
     "source":{"text":"shop/cart-7d9","address":"10.1.2.3","kind":"pod","identity":16,"labels":"app=cart","local":true},
     "destination":{"text":"shop/db-0","address":"10.1.2.4","kind":"pod","identity":18,"labels":"app=db","local":true},
     "service":null,
     "paths":[{"backend":null,"backendText":null,
       "egress":{"applies":true,"verdict":"allow","text":"ALLOW shop/allow-egress rule 0",
         "policies":["shop/allow-egress"],"rule":{"policy":"shop/allow-egress","index":0},"nearest":null,
         "kernel":{"text":"ALLOW shop/allow-egress rule 0","agrees":true}},
       "ingress":{"applies":true,"verdict":"deny","text":"DENY isolated by shop/deny-db; no rule matches app=cart",
         "policies":["shop/deny-db"],"rule":null,
         "nearest":{"policy":"shop/deny-db","index":1,"text":"rule 1 needs role=api"},
         "kernel":{"text":"DENY isolated by shop/deny-db","agrees":true}},
       "allowed":false}],
     "verdict":"denied"}
    """

  /// A Service with two backends of which the policy of one lets the flow through, and an agent that the kernel
  /// contradicts.
  static let service = """
    {"apiVersion":"sluice.dev/v1",
     "source":{"text":"203.0.113.9","address":"203.0.113.9","kind":"world","identity":22,"labels":null,"local":false},
     "destination":{"text":"shop/api","address":"10.96.0.10","kind":"service","identity":null,"labels":null,"local":false},
     "service":{"text":"shop/api","frontend":"10.96.0.10:80/tcp","outcome":"translated","reason":null},
     "paths":[
      {"backend":"10.244.1.5:8080","backendText":"shop/api-1",
       "egress":{"applies":false,"verdict":"not-local","text":"203.0.113.9 is no pod of this node","policies":[],
         "rule":null,"nearest":null,"kernel":null},
       "ingress":{"applies":true,"verdict":"allow","text":"ALLOW shop/api rule 2","policies":["shop/api"],
         "rule":{"policy":"shop/api","index":2},"nearest":null,
         "kernel":{"text":"DENY isolated by shop/api","agrees":false}},"allowed":true},
      {"backend":"[fd00::5]:8080","backendText":null,
       "egress":{"applies":false,"verdict":"not-local","text":"","policies":[],"rule":null,"nearest":null,"kernel":null},
       "ingress":{"applies":true,"verdict":"audit-deny","text":"AUDIT would be denied by shop/watch","policies":[],
         "rule":null,"nearest":null,"kernel":null},"allowed":false}],
     "morePaths":3,
     "verdict":"mixed"}
    """

  static let rejected = """
    {"apiVersion":"sluice.dev/v1",
     "source":{"text":"host","address":"192.168.0.1","kind":"host","identity":null,"labels":null,"local":true},
     "destination":{"text":"shop/none","address":"10.96.0.11","kind":"service","identity":null,"labels":null,"local":false},
     "service":{"text":"shop/none","frontend":"10.96.0.11:80/tcp","outcome":"rejected","reason":"no-endpoint"},
     "paths":[],"verdict":"rejected"}
    """
}
