"""The conductor that sends and receives through a broker of AMQP, such as RabbitMQ."""
