import LocalAPI

/// Why a request is refused: `metav1.Status`.
package struct Refusal: Error, Sendable {
  package var code: Int
  var reason: String
  var message: String
  var retryAfterSeconds: Int?
  var cause: String?
  /// Which field of which object is to blame, and for what: what kubectl shows of an invalid object.
  var field: (object: String, path: String, message: String)?
  /// By which a list that is no longer possible as it was can go on.
  var next = ""

  package init(_ code: Int, _ reason: String, _ message: String) {
    (self.code, self.reason, self.message) = (code, reason, message)
  }

  static func badRequest(_ message: String) -> Refusal { Refusal(400, "BadRequest", message) }

  /// - Parameter object: kind and name: `Service "web"`.
  static func invalid(_ object: String, _ field: String, _ message: String) -> Refusal {
    var refusal = Refusal(422, "Invalid", "\(object) is invalid: \(field): \(message)")
    refusal.field = (object, field, message)
    return refusal
  }

  static func notFound(_ what: String) -> Refusal { Refusal(404, "NotFound", "\(what) not found") }

  static func expired(_ message: String) -> Refusal { Refusal(410, "Expired", message) }

  /// What the watch cache says of a version that it has not come to.
  static func tooLarge(_ version: Int, current: Int) -> Refusal {
    var refusal = Refusal(504, "Timeout", "Timeout: Too large resource version: \(version), current: \(current)")
    refusal.retryAfterSeconds = 1
    refusal.cause = "ResourceVersionTooLarge"
    return refusal
  }

  var json: JSONValue {
    var details: [(String, JSONValue)] = []
    if let cause { details.append(("causes", [["reason": .string(cause)]])) }
    if let field {
      let words = field.object.split(separator: " ", maxSplits: 1)
      details += [
        ("kind", .string(String(words.first ?? ""))),
        ("name", .string(words.count > 1 ? words[1].filter { $0 != "\"" } : "")),
        (
          "causes",
          [["reason": "FieldValueInvalid", "message": .string(field.message), "field": .string(field.path)]]
        ),
      ]
    }
    if let retryAfterSeconds { details.append(("retryAfterSeconds", .int(Int64(retryAfterSeconds)))) }
    return [
      "kind": "Status", "apiVersion": "v1", "metadata": next.isEmpty ? [:] : ["continue": .string(next)],
      "status": "Failure", "message": .string(message), "reason": .string(reason),
      "details": .object(JSONObject(details)), "code": .int(Int64(code)),
    ]
  }
}
