import LocalAPI

/// A failure as the CNI specification has the runtime see it: JSON on standard output.
struct CNIError: Error {
  /// The specification's well-known codes, ours from 100 up, and those of plugins that we run.
  struct Code: RawRepresentable, Hashable {
    let rawValue: Int64

    static let incompatibleVersion = Code(rawValue: 1)
    static let unsupportedField = Code(rawValue: 2)
    static let unknownContainer = Code(rawValue: 3)
    static let invalidEnvironment = Code(rawValue: 4)
    static let io = Code(rawValue: 5)
    static let decoding = Code(rawValue: 6)
    static let invalidConfig = Code(rawValue: 7)
    static let tryAgainLater = Code(rawValue: 11)
    /// STATUS only: no ADD can be served.
    static let notAvailable = Code(rawValue: 50)
    /// STATUS only: the same, and what is attached is impaired too.
    static let limitedConnectivity = Code(rawValue: 51)
    /// The kernel refused a request.
    static let kernel = Code(rawValue: 100)
    /// The pod has an interface of that name.
    static let interfaceExists = Code(rawValue: 101)
    /// A requested address cannot be had.
    static let addressUnavailable = Code(rawValue: 102)
    /// CHECK found something missing.
    static let checkFailed = Code(rawValue: 103)
    /// The container is attached already.
    static let alreadyAttached = Code(rawValue: 104)
    /// A plugin that we run cannot be run, or does not say what it has to.
    static let otherPlugin = Code(rawValue: 105)
    /// GC could not remove all it had to.
    static let leftBehind = Code(rawValue: 106)
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
