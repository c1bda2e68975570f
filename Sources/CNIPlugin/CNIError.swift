import LocalAPI

/// A failure as the CNI specification has the runtime see it: JSON on standard output.
struct CNIError: Error {
  /// The specification's well-known codes, and ours from 100 up.
  enum Code: Int64 {
    case incompatibleVersion = 1
    case unsupportedField = 2
    case unknownContainer = 3
    case invalidEnvironment = 4
    case io = 5
    case decoding = 6
    case invalidConfig = 7
    case tryAgainLater = 11
    /// STATUS only: no ADD can be served.
    case notAvailable = 50
    /// The kernel refused a request.
    case kernel = 100
    /// The pod has an interface of that name.
    case interfaceExists = 101
    /// A requested address cannot be had.
    case addressUnavailable = 102
    /// CHECK found something missing.
    case checkFailed = 103
    /// The container is attached already.
    case alreadyAttached = 104
  }

  let code: Code
  let message: String
  let details: String?

  init(_ code: Code, _ message: String, details: String? = nil) {
    self.code = code
    self.message = message
    self.details = details
  }

  func json(version: String) -> JSONValue {
    var object: JSONObject = ["cniVersion": .string(version), "code": .int(code.rawValue), "msg": .string(message)]
    object["details"] = details.map(JSONValue.string)
    return .object(object)
  }

  static func environment(_ variable: String, _ reason: String) -> CNIError {
    CNIError(.invalidEnvironment, "\(variable) \(reason)")
  }

  static func config(_ field: String, _ reason: String) -> CNIError {
    CNIError(.invalidConfig, "network configuration: \(field): \(reason)")
  }

  static func unsupported(_ field: String, _ value: String, _ reason: String) -> CNIError {
    CNIError(.unsupportedField, "network configuration: \(field): \(value) is not supported: \(reason)")
  }
}

/// Runs `body` and says its error in CNI's terms.
func translating<Value, Failure: Error>(
  _ body: () throws(Failure) -> Value, _ translate: (Failure) -> CNIError
) throws(CNIError) -> Value {
  do throws(Failure) {
    return try body()
  } catch {
    throw translate(error)
  }
}
